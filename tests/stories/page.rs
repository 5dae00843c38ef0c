//! The page at `/`: it may run nothing that did not come from the program itself.

use crate::harness::Stack;

/// What stands between `<script` and its end, for every script of the page.
fn scripts(page: &str) -> Vec<(String, String)> {
    let lower = page.to_lowercase();
    let mut found = Vec::new();
    for (start, _) in lower.match_indices("<script") {
        let rest = &page[start + "<script".len()..];
        let (attributes, rest) = rest.split_once('>').expect("the tag ends");
        let end = rest.to_lowercase().find("</script").expect("the script ends");
        found.push((attributes.to_owned(), rest[..end].trim().to_owned()));
    }
    found
}

#[tokio::test]
async fn the_page_runs_only_what_the_program_serves() {
    let stack = Stack::start().await;
    let page = stack.get("/").await;
    assert_eq!(page.status, 200);
    let header = |name: &str| page.header(name).unwrap_or_else(|| panic!("no {name}")).to_owned();
    assert!(header("content-type").starts_with("text/html"));
    let policy = header("content-security-policy");
    assert!(policy.contains("default-src") || policy.contains("script-src"), "{policy}");
    for hole in ["unsafe-inline", "unsafe-eval", "script-src *", "default-src *", "data:"] {
        let scripts = policy.split(';').filter(|rule| !rule.trim().starts_with("img-src"));
        assert!(!scripts.into_iter().any(|rule| rule.contains(hole)), "{hole} in {policy}");
    }

    let html = page.text();
    let scripts = scripts(&html);
    assert!(!scripts.is_empty(), "a page that talks has a script");
    for (attributes, inline) in scripts {
        assert_eq!(inline, "", "an inline script");
        let (_, source) = attributes.split_once("src=\"").expect("a script has a source");
        let (source, _) = source.split_once('"').expect("quoted");
        assert!(!source.contains("//"), "{source} is from elsewhere");
        let script = stack.get(&format!("/{}", source.trim_start_matches('/'))).await;
        let kind = script.header("content-type").unwrap_or_default().to_owned();
        assert!(script.status == 200 && kind.contains("javascript"), "{source}: {kind}");
        for unsafe_word in
            ["innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval("]
        {
            assert!(!script.text().contains(unsafe_word), "{unsafe_word} in {source}");
        }
    }
    let attributes = html.split('<').filter_map(|tag| tag.split_once('>')).map(|(tag, _)| tag);
    for attribute in attributes.flat_map(str::split_whitespace) {
        let name = attribute.split('=').next().unwrap_or_default().to_lowercase();
        assert!(!(name.starts_with("on") && attribute.contains('=')), "a handler: {attribute}");
        assert!(!attribute.to_lowercase().contains("javascript:"), "{attribute}");
    }
    stack.stop().await;
}
