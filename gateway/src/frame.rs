//! The client's protocol: codes, frames and their bodies. No other crate knows these.

mod bodies;
mod codes;
mod encode;
mod parse;
mod reply;

pub(crate) use self::{
    bodies::{AckBody, BusinessBody, LoginBody, optional_number_or_digits},
    codes::{RefusalCode, biz, code},
    encode::{EncodedMessage, Transport, reply_text, write_ws_close},
    parse::{Body, ClientFrame, FrameError, object, parse_tcp, parse_ws},
    reply::Reply,
};
