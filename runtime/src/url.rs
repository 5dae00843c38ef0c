//! URLs in logs and errors.

/// Returns the URL without user and password, for logs and errors.
pub fn redact_url(url: &str) -> String {
    match (url.find("://"), url.rfind('@')) {
        (Some(scheme), Some(at)) => format!("{}{}", &url[..scheme + 3], &url[at + 1..]),
        (None, Some(at)) => url[at + 1..].to_owned(),
        _ => url.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_redacted_url_holds_no_password() {
        assert_eq!(redact_url("mysql://u:p@h/x?socket=/s"), "mysql://h/x?socket=/s");
        assert_eq!(redact_url("mysql://u:p,q@h/x"), "mysql://h/x");
        assert_eq!(redact_url("sqlite://x.db"), "sqlite://x.db");
    }
}
