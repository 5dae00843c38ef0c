//! Display names of users, taken from their own messages.

use std::collections::HashMap;

use qiyu_nats::log::LogEntry;
use qiyu_schema::{
    AppId, UserId,
    event::{Event, Record},
};

use crate::log::event_view::{EventKind, EventView, for_each_view};

/// Names kept. Beyond it users are shown by number: a log of a million senders must not
/// become a million strings.
const NAMES_MAX: usize = 100_000;

/// Display names by user.
#[derive(Debug, Default)]
pub(crate) struct DisplayNames(HashMap<(AppId, UserId), String>);

impl DisplayNames {
    /// Takes the sender's name from a message, if none is known yet.
    pub(crate) fn learn(&mut self, entry: &LogEntry, record: &Record) {
        let (app, sender) = match &record.event {
            Event::RoomMessageSent { app, sender, .. }
            | Event::DirectMessageSent { app, sender, .. } => (*app, sender),
            _ => return,
        };
        if sender.user.is_some_and(|user| !self.0.contains_key(&(app, user))) {
            for_each_view(entry, Some(record), |view| self.learn_of(&view));
        }
    }

    /// Takes the sender's current name from a view.
    pub(crate) fn learn_of(&mut self, view: &EventView<'_>) {
        let said = matches!(view.kind, EventKind::RoomMessage | EventKind::DirectMessage);
        let (Some(app), Some(user), Some(name)) = (view.app, view.user, &view.name) else {
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
