//! The text of an error with all its causes, for one line of a log.

use std::{error::Error, fmt::Write};

/// Returns `error: its cause: the cause of that …`.
///
/// A cause that the text so far already ends with is left out: async-nats
/// repeats its sources in its own messages.
pub fn chain(error: &(dyn Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let message = error.to_string();
        if !text.ends_with(&message) {
            write!(text, ": {message}").ok(); // writing to a String does not fail
        }
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("{message}")]
    struct Link {
        message: &'static str,
        source: Option<Box<Link>>,
    }

    #[test]
    fn a_repeated_cause_is_left_out() {
        let link = |message, source: Option<Link>| Link { message, source: source.map(Box::new) };
        let error = link("read the log: timed out", Some(link("timed out", None)));
        let error = link("fold p07", Some(error));
        assert_eq!(chain(&error), "fold p07: read the log: timed out");
    }
}
