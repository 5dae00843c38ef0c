//! Output of the tools: results to standard output, progress to standard error.

use std::io::{self, Write as _};

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
