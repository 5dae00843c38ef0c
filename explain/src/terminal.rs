//! Output of the tools: results to standard output, progress to standard error.

use std::{
    borrow::Cow,
    io::{self, IsTerminal as _, Write as _},
};

/// Writes `text` and a line break to standard output. A closed output is no error.
pub fn print(text: &str) {
    let mut out = io::stdout().lock();
    writeln!(out, "{}", text.trim_end()).and_then(|()| out.flush()).ok();
}

/// Writes a line of progress to standard error, whatever the log level. A
/// closed output is no error.
pub fn progress(line: &str) {
    writeln!(io::stderr(), "qiyu: {line}").ok();
}

/// Whether output is colored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ColorMode {
    On,
    Off,
}

impl ColorMode {
    /// Returns `On` for a terminal without `NO_COLOR` (no-color.org).
    pub(crate) fn of_stdout() -> Self {
        let unwanted = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
        let dumb = std::env::var_os("TERM").is_some_and(|term| term == "dumb");
        let wanted = io::stdout().is_terminal() && !unwanted && !dumb;
        if wanted { Self::On } else { Self::Off }
    }

    pub(crate) fn paint<'t>(self, style: Style, text: &'t str) -> Cow<'t, str> {
        match self {
            Self::Off => Cow::Borrowed(text),
            Self::On => Cow::Owned(format!("\x1b[{}m{text}\x1b[0m", style.sgr())),
        }
    }
}

#[derive(Clone, Copy, Debug)]
pub(crate) enum Style {
    Dim,
    Bold,
    Good,
    Notice,
    Bad,
    Name,
}

impl Style {
    fn sgr(self) -> &'static str {
        match self {
            Self::Dim => "2",
            Self::Bold => "1",
            Self::Good => "32",
            Self::Notice => "33",
            Self::Bad => "31",
            Self::Name => "36",
        }
    }
}
