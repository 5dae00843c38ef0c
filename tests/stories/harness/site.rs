//! Where a running system can be reached, and every secret it handed out.

use std::sync::Mutex;

/// The outside of one gateway process.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Door {
    pub(crate) http: String,
    pub(crate) ws: String,
    pub(crate) tcp: String,
}

/// Shared by a stack and its people, so that people find the system again after a restart.
#[derive(Debug, Default)]
pub(crate) struct Site {
    door: Mutex<Door>,
    /// Of every gateway there is or was just now.
    gateways: Mutex<Vec<Door>>,
    secrets: Mutex<Vec<String>>,
}

impl Site {
    pub(crate) fn door(&self) -> Door {
        self.door.lock().unwrap().clone()
    }

    pub(crate) fn moves_to(&self, door: Door) {
        *self.door.lock().unwrap() = door;
    }

    pub(crate) fn has_gateways(&self, doors: Vec<Door>) {
        *self.gateways.lock().unwrap() = doors;
    }

    pub(crate) fn gateways(&self) -> Vec<Door> {
        self.gateways.lock().unwrap().clone()
    }

    /// Remembers a token, a cookie or a key: no log may ever show it.
    pub(crate) fn keeps_secret(&self, secret: &str) {
        self.secrets.lock().unwrap().push(secret.to_owned());
    }

    /// Fails on the lines of a log that must not exist.
    pub(crate) fn checks(&self, name: &str, log: &str) {
        for line in log.lines() {
            let error = line.split(|c: char| !c.is_alphanumeric()).any(|word| word == "ERROR");
            assert!(!error, "{name} needed a person: {line}");
            assert!(!line.contains("panicked"), "{name} panicked: {line}");
        }
        for secret in self.secrets.lock().unwrap().iter() {
            assert!(!log.contains(secret.as_str()), "{name} wrote a secret into its log: {secret}");
        }
    }
}
