//! `qiyu top`: who is at work in a running system, and how much, once a second.

mod board;
mod reading;

use std::{io::IsTerminal as _, time::Duration};

use anyhow::{Context as _, bail};
use qiyu_explain::access::LogAccess;
use qiyu_nats::server;
use qiyu_presence::Gateways;
use ratatui::{
    DefaultTerminal,
    crossterm::event::{self, Event, KeyCode, KeyEventKind, KeyModifiers},
};
use tokio::time::{MissedTickBehavior, interval, sleep};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use self::{board::Board, reading::Reading};
use crate::{run::say, settings::Settings};

/// How often the system is looked at, and what rates are taken over.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// How often the keyboard is.
const KEYS_EVERY: Duration = Duration::from_millis(50);

/// How the system is shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Show {
    /// On the whole terminal, until a key ends it.
    Live,
    /// Once, as text.
    Once,
}

/// Shows the system of `--nats-url` or `--data-dir` until `stop`.
pub(crate) async fn top(
    settings: &Settings,
    show: Show,
    stop: &CancellationToken,
) -> anyhow::Result<()> {
    let dir = &settings.data_dir;
    let running = settings.nats_url.is_some() || server::running_url(dir)?.is_some();
    if !running {
        bail!("no qiyu runs on {}; name its --data-dir, or its --nats-url", dir.display());
    }
    if show == Show::Live && !std::io::stdout().is_terminal() {
        bail!("standard output is no terminal; `qiyu top --once` writes plain text");
    }
    let reached = LogAccess::connect(&settings.explain().log).await?;
    let (tasks, over) = (TaskTracker::new(), stop.child_token());
    let watched = async {
        let gateways = Gateways::follow(&reached.bus, &tasks, over.clone()).await;
        let gateways = gateways.context("follow the gateways")?;
        match show {
            Show::Live => live(&reached, &gateways, &over).await,
            Show::Once => once(&reached, &gateways).await,
        }
    };
    let result = stop.run_until_cancelled(watched).await.unwrap_or(Ok(()));
    over.cancel();
    reached.close().await;
    result
}

async fn once(reached: &LogAccess, gateways: &Gateways) -> anyhow::Result<()> {
    let before = Reading::take(&reached.bus, gateways).await?;
    if before.is_empty() {
        bail!("no process of a qiyu answers at {}", reached.shown_url);
    }
    sleep(LOOK_EVERY).await;
    let now = Reading::take(&reached.bus, gateways).await?;
    say(&Board::of(&reached.shown_url, Some(&before), &now).to_string());
    Ok(())
}

async fn live(
    reached: &LogAccess,
    gateways: &Gateways,
    stop: &CancellationToken,
) -> anyhow::Result<()> {
    let mut terminal = ratatui::try_init().context("take over the terminal")?;
    let result = look_on(&mut terminal, reached, gateways, stop).await;
    ratatui::restore();
    result
}

async fn look_on(
    terminal: &mut DefaultTerminal,
    reached: &LogAccess,
    gateways: &Gateways,
    stop: &CancellationToken,
) -> anyhow::Result<()> {
    let (mut look, mut keys) = (interval(LOOK_EVERY), interval(KEYS_EVERY));
    for timer in [&mut look, &mut keys] {
        timer.set_missed_tick_behavior(MissedTickBehavior::Delay);
    }
    let mut before: Option<Reading> = None;
    let mut board: Option<Board> = None;
    loop {
        tokio::select! {
            biased; // whoever wants to leave is let go first
            () = stop.cancelled() => return Ok(()),
            _ = keys.tick() => match pressed()? {
                Pressed::Nothing => continue,
                Pressed::Quit => return Ok(()),
                Pressed::Redraw => {}
            },
            _ = look.tick() => {
                let now = Reading::take(&reached.bus, gateways).await?;
                board = Some(Board::of(&reached.shown_url, before.as_ref(), &now));
                before = Some(now);
            }
        }
        if let Some(board) = &board {
            terminal.draw(|frame| board.draw(frame)).context("draw")?;
        }
    }
}

enum Pressed {
    Nothing,
    Redraw,
    Quit,
}

/// What the keyboard says, without waiting for it.
fn pressed() -> anyhow::Result<Pressed> {
    let mut pressed = Pressed::Nothing;
    while event::poll(Duration::ZERO).context("read the keyboard")? {
        match event::read().context("read the keyboard")? {
            Event::Resize(..) => pressed = Pressed::Redraw,
            Event::Key(key) if key.kind == KeyEventKind::Press => {
                let interrupt =
                    key.code == KeyCode::Char('c') && key.modifiers == KeyModifiers::CONTROL;
                if interrupt || matches!(key.code, KeyCode::Char('q') | KeyCode::Esc) {
                    return Ok(Pressed::Quit);
                }
            }
            _ => {}
        }
    }
    Ok(pressed)
}
