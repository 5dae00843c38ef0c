//! What users are called, as far as their own messages have told.

use std::collections::HashMap;

use qiyu_nats::log::LogEntry;
use qiyu_schema::{
    AppId, UserId,
    event::{Event, Record},
};

use super::happening::{Happening, Kind, take_apart};

/// Names remembered. Beyond it users are shown by their numbers: a log of a
/// million speakers must not become a million strings.
const NAMES_MAX: usize = 100_000;

/// Names by user.
#[derive(Debug, Default)]
pub(crate) struct Names(HashMap<(AppId, UserId), String>);

impl Names {
    /// Learns from a message what its sender is called, if nothing is known yet.
    pub(crate) fn learn(&mut self, entry: &LogEntry, record: &Record) {
        let (app, sender) = match &record.event {
            Event::RoomMessageSent { app, sender, .. }
            | Event::DirectMessageSent { app, sender, .. } => (*app, sender),
            _ => return,
        };
        if sender.user.is_some_and(|user| !self.0.contains_key(&(app, user))) {
            take_apart(entry, Some(record), |happening| self.learn_of(&happening));
        }
    }

    /// Learns what a sender is called from now on.
    pub(crate) fn learn_of(&mut self, happening: &Happening<'_>) {
        let said = matches!(happening.kind, Kind::Said | Kind::Wrote);
        let (Some(app), Some(user), Some(name)) = (happening.app, happening.user, &happening.name)
        else {
            return;
        };
        if !said || name.is_empty() {
            return;
        }
        let full = NAMES_MAX <= self.0.len();
        match self.0.get_mut(&(app, user)) {
            Some(known) if *known == **name => {}
            Some(known) => *known = name.to_string(),
            None if !full => {
                self.0.insert((app, user), name.to_string());
            }
            None => {}
        }
    }

    pub(crate) fn of(&self, app: Option<AppId>, user: UserId) -> Option<&str> {
        self.0.get(&(app?, user)).map(String::as_str)
    }
}
