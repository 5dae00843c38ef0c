//! Database URLs: the parts that matter to SQLite.

use std::path::Path;

/// Adds the mode in which SQLite creates a missing file.
pub(crate) fn create_if_missing(url: &str) -> String {
    match url.split_once('?') {
        _ if !url.starts_with("sqlite:") => url.to_owned(),
        Some((_, query)) if query.contains("mode=") => url.to_owned(),
        Some(_) => format!("{url}&mode=rwc"),
        None => format!("{url}?mode=rwc"),
    }
}

/// Returns the directory of a SQLite file. `None`: no file, or one in the current directory.
pub(crate) fn sqlite_directory(url: &str) -> Option<&Path> {
    let path = url.strip_prefix("sqlite:")?;
    let path = path.strip_prefix("//").unwrap_or(path);
    let path = path.split_once('?').map_or(path, |(path, _)| path);
    if path.starts_with(':') {
        return None;
    }
    Path::new(path).parent().filter(|parent| !parent.as_os_str().is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sqlite_urls_name_their_directory() {
        let directory = |url| sqlite_directory(url).and_then(Path::to_str);
        assert_eq!(directory("sqlite:///var/q/x.db?mode=rwc"), Some("/var/q"));
        assert_eq!(directory("sqlite://data/x.db"), Some("data"));
        assert_eq!(directory("sqlite://x.db"), None);
        assert_eq!(directory("sqlite::memory:"), None);
        assert_eq!(directory("mysql://h/x"), None);
        assert_eq!(create_if_missing("sqlite://x?mode=ro"), "sqlite://x?mode=ro");
        assert_eq!(create_if_missing("sqlite://x"), "sqlite://x?mode=rwc");
    }
}
