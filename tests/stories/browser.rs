//! The page in a real browser: two people talk in two tabs of it (`docs/PROTOCOL.md` §7).

use std::time::Duration;

use serde_json::json;

use crate::harness::chromium::{Browser, Tab};
use crate::harness::{PATIENCE, Stack, eventually};

/// A process with an address that a story can ask for, and everything in it.
const EVERYTHING: &[&str] = &["fanout,presence,living,api,gateway"];

/// Nobody who talks waits for longer, not even on a busy machine.
const AT_ONCE: Duration = Duration::from_secs(3);

// Whatever people call themselves, their rooms and their dinner is text.
const BEN: &str = "ben<img src=x onerror=ran=1>";
const KITCHEN: &str = "ann's <script>ran=1</script> kitchen";
const PICTURE: &str = r#"<img src=x onerror="window.ran = 1">"#;
const SCRIPT: &str = "</li><script>window.ran = 1</script>&lt;b&gt;";

fn page(stack: &Stack) -> String {
    format!("http://{}/", stack.gateway(1).http)
}

async fn logs_in(tab: &Tab, name: &str) {
    tab.types("#name", name).await;
    tab.clicks("#login-form button").await;
    tab.reads("#who", name).await;
}

async fn says(tab: &Tab, text: &str) {
    tab.types("#say", text).await;
    tab.presses_enter().await;
}

async fn hears(tab: &Tab, text: &str) {
    tab.reads_within(AT_ONCE, "#messages .theirs", text).await;
}

/// Nothing that anybody wrote became a part of the page, let alone ran.
async fn shows_text_only(tab: &Tab) {
    let look = "() => ({
        ran: typeof window.ran,
        images: document.images.length,
        scripts: [...document.scripts].map((one) => one.getAttribute('src')),
        bold: document.querySelectorAll('#messages b').length,
    })";
    let seen = tab.evaluates(look).await;
    let only =
        json!({ "ran": "undefined", "images": 0, "scripts": ["/assets/page.js"], "bold": 0 });
    assert_eq!(seen, only);
}

#[tokio::test]
async fn two_people_talk_in_two_tabs() {
    let stack = Stack::roles(EVERYTHING, &[]).await;
    let browser = Browser::starts().await;

    let ann = browser.opens("ann's tab", &page(&stack)).await;
    ann.clicks("#vip").await;
    logs_in(&ann, "ann").await;
    ann.types("#room-name", KITCHEN).await;
    ann.clicks("#open-form button").await;
    ann.reads("#room-title", KITCHEN).await;
    ann.reads("#link[data-state=on]", "ann").await;

    // The tabs share a cookie, and are two people all the same.
    let ben = browser.opens("ben's tab", &page(&stack)).await;
    ben.reads("#continue", "ann").await;
    logs_in(&ben, BEN).await;
    ben.reads("#rooms a", KITCHEN).await;
    assert!(ben.texts("#open-form").await.is_empty(), "ben did not ask to stream");
    ben.enters("#rooms a", KITCHEN).await;
    ben.reads("#room-title", KITCHEN).await;
    ben.reads("#room-anchor", "ann").await;
    ben.reads("#link[data-state=on]", BEN).await;
    assert!(ben.texts("#close-room").await.is_empty(), "only an anchor closes a room");
    ann.reads("#watching", "2 人").await;

    // Ann's tab is behind ben's, and hears him there.
    says(&ben, "hello").await;
    hears(&ann, "hello").await;
    says(&ann, "welcome, dinner is ready").await;
    hears(&ben, "welcome, dinner is ready").await;
    for text in [PICTURE, SCRIPT] {
        says(&ben, text).await;
        hears(&ann, text).await;
        says(&ann, text).await;
        hears(&ben, text).await;
    }

    // A name, then what was said. A receipt takes the rest of one's own line away.
    let talk = [
        (BEN, "hello"),
        ("ann", "welcome, dinner is ready"),
        (BEN, PICTURE),
        ("ann", PICTURE),
        (BEN, SCRIPT),
        ("ann", SCRIPT),
    ];
    let talk = talk.map(|(name, text)| format!("{name}{text}"));
    for tab in [&ann, &ben] {
        eventually("both tabs show the whole talk, in order", PATIENCE, async || {
            tab.texts("#messages li").await == talk
        })
        .await;
        shows_text_only(tab).await;
    }

    ann.clicks("#close-room").await;
    for tab in [&ben, &ann] {
        tab.reads_within(AT_ONCE, "#link[data-state=off]", "The room is closed").await;
        tab.reads("#say-form:has(#say:disabled)", "Send").await;
    }
    ben.clicks("#room a[href='#/']").await;
    ben.reads("#list-state", "Nobody is live").await;
    assert!(ben.texts("#rooms a").await.is_empty(), "the room is off the list");
    shows_text_only(&ben).await;

    browser.closes().await;
    stack.stop().await;
}

/// The story above is worth what its eyes are worth, and the page's policy is one of its eyes.
#[tokio::test]
async fn nothing_runs_in_the_page_unnoticed() {
    let stack = Stack::roles(EVERYTHING, &[]).await;
    let browser = Browser::starts().await;
    let tab = browser.opens("a tab", &page(&stack)).await;
    tab.reads("#login", "Come in").await;
    assert_eq!(tab.troubles(), Vec::<String>::new());

    let adds = |tag: &str, rest: &str| {
        let set = format!("Object.assign(document.createElement('{tag}'), {rest})");
        format!("() => {{ document.body.append({set}); }}")
    };
    for (misdeed, evidence) in [
        ("() => { setTimeout(() => { throw new Error('a mistake'); }); }".to_owned(), "a mistake"),
        ("() => { console.error('a complaint'); }".to_owned(), "a complaint"),
        (adds("script", "{ textContent: 'window.ran = 1' }"), "ContentSecurityPolicyIssue"),
        (adds("script", "{ src: 'http://127.0.0.1:1/' }"), "ContentSecurityPolicyIssue"),
        (
            adds("b", "{ innerHTML: '<i onclick=\"window.ran = 1\">' }"),
            "ContentSecurityPolicyIssue",
        ),
        ("() => { fetch('/nothing/here'); }".to_owned(), "404"),
    ] {
        tab.evaluates(&misdeed).await;
        eventually(&format!("{evidence} of {misdeed} shows"), PATIENCE, async || {
            tab.troubles().iter().any(|trouble| trouble.contains(evidence))
        })
        .await;
        assert_eq!(tab.evaluates("() => typeof window.ran").await, "undefined", "{misdeed}");
    }

    // What is left of it is on purpose.
    tab.closes().await;
    stack.stop().await;
}
