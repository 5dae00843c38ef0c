//! Stories across the whole system, told from outside.
//!
//! Each one starts the real program (`Stack::start`), meets people (`stack.person("ann")`), lets
//! them talk over real sockets, and stops the program, which also checks that it ended well, left
//! no child and wrote neither an error nor a token into its log. The contract they hold the system
//! to is `docs/PROTOCOL.md`; its sections are named where a story covers one.

// A story that cannot go on stops loudly, and its helpers are part of the story.
#![allow(clippy::unwrap_used, clippy::disallowed_methods)]

mod harness;

mod auditor;
mod browser;
mod comeback;
mod content;
mod delivery;
mod edge;
mod eyes;
mod faults;
mod frames;
mod losses;
mod moderation;
mod order;
mod page;
mod presence;
mod program;
mod refusals;
mod replay;
mod rooms;
mod server;
mod storage;
mod talk;
mod trace;
mod upgrade;
mod users;
mod verify;
