//! An error with all its causes, on one line of a log.

use std::{error::Error, fmt::Write};

/// `error: its cause: the cause of that …`
///
/// A cause that the text so far ends with already is left out: async-nats says
/// its sources both in its own words and as sources.
pub fn chain(error: &(dyn Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let words = error.to_string();
        if !text.ends_with(&words) {
            write!(text, ": {words}").ok(); // writing to a String does not fail
        }
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("{words}")]
    struct Link {
        words: &'static str,
        source: Option<Box<Link>>,
    }

    #[test]
    fn every_cause_is_said_once() {
        let link = |words, source: Option<Link>| Link { words, source: source.map(Box::new) };
        let error = link("read the log: timed out", Some(link("timed out", None)));
        let error = link("fold p07", Some(error));
        assert_eq!(chain(&error), "fold p07: read the log: timed out");
    }
}
