//! A real browser: Chromium without a window, driven over its DevTools protocol.
//!
//! People use it as they would: they click what lies under the pointer and type on the keys. Only
//! what they see is read out of the document.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::Stdio;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures_util::{SinkExt, StreamExt};
use rustix::process::{Pid, Signal, kill_process_group, test_kill_process_group};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt, BufReader, Lines};
use tokio::net::TcpStream;
use tokio::process::{Child, ChildStderr, Command};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::sync::oneshot;
use tokio::time::timeout;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::{WebSocketStream, client_async};

use super::wait::{PATIENCE, eventually};

/// What it is called, here and there; `./test` looks for the same names.
const NAMES: &[&str] = &["chromium", "chromium-browser", "google-chrome"];

/// It comes up in a second, but not on a machine that is compiling.
const START: Duration = Duration::from_secs(60);

/// Root has no sandbox; and it asks nobody on the internet for anything.
const FLAGS: &[&str] = &[
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--remote-debugging-port=0",
];

/// Something to do, and where to put what came of it.
type Ask = (Value, oneshot::Sender<Result<Value, String>>);

/// What went wrong: the session of the tab, and what it said.
type Troubles = Arc<Mutex<Vec<(String, String)>>>;

/// A running browser, killed with everything it started when dropped.
pub(crate) struct Browser {
    child: Child,
    group: Pid,
    asks: UnboundedSender<Ask>,
    troubles: Troubles,
    /// Its profile, and its home: it leaves nothing behind.
    _home: TempDir,
}

/// One tab and whoever sits in front of it.
pub(crate) struct Tab {
    name: String,
    session: String,
    target: String,
    asks: UnboundedSender<Ask>,
    troubles: Troubles,
    /// What was read last, for a story that fails.
    seen: Mutex<Value>,
}

/// Starting and stopping.
impl Browser {
    pub(crate) async fn starts() -> Self {
        let home = TempDir::new().expect("a temp dir can be made");
        let binary = binary();
        let mut command = Command::new(&binary);
        command.args(FLAGS).arg(format!("--user-data-dir={}", home.path().display()));
        command.env("HOME", home.path()).env("TMPDIR", home.path());
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        command.process_group(0).kill_on_drop(true);
        let mut child =
            command.spawn().unwrap_or_else(|error| panic!("start {}: {error}", binary.display()));
        let id = child.id().and_then(|id| i32::try_from(id).ok()).and_then(Pid::from_raw);
        let group = id.expect("a child that was not waited for has an id");
        let lines = BufReader::new(child.stderr.take().expect("stderr is piped")).lines();
        let (asks, asked) = unbounded_channel();
        let troubles = Troubles::default();
        // From here on it is killed whatever happens.
        let browser = Self { child, group, asks, troubles, _home: home };

        let url = listens(lines).await;
        let address = url.strip_prefix("ws://").and_then(|rest| rest.split('/').next());
        let address = address.unwrap_or_else(|| panic!("no host in {url}"));
        let stream = TcpStream::connect(address).await.expect("it just said that it listens");
        stream.set_nodelay(true).expect("a fresh socket takes options");
        let upgrade = timeout(PATIENCE, client_async(&url, stream)).await.expect("it answers");
        let (stream, _) = upgrade.unwrap_or_else(|error| panic!("{url}: {error}"));
        tokio::spawn(speaks(stream, asked, Arc::clone(&browser.troubles)));
        browser
    }

    /// Opens a tab, in front of all others, and waits until the page at `url` is there.
    pub(crate) async fn opens(&self, name: &str, url: &str) -> Tab {
        let asks = &self.asks;
        let target = ask(asks, None, "Target.createTarget", json!({ "url": "about:blank" })).await;
        let target = text(&target["targetId"]);
        let attach = json!({ "targetId": target, "flatten": true });
        let session = text(&ask(asks, None, "Target.attachToTarget", attach).await["sessionId"]);
        let (asks, troubles) = (asks.clone(), Arc::clone(&self.troubles));
        let (name, seen) = (name.to_owned(), Mutex::default());
        let tab = Tab { name, session, target, asks, troubles, seen };
        // Before the page, so that nothing it does goes unnoticed.
        for domain in ["Page", "Runtime", "Log", "Audits", "Inspector"] {
            tab.does(&format!("{domain}.enable"), json!({})).await;
        }
        let went = tab.does("Page.navigate", json!({ "url": url })).await;
        assert_eq!(went["errorText"], Value::Null, "{} went to {url}", tab.name);
        tab.finds(&format!("{url} is loaded"), "() => document.readyState === 'complete'").await;
        tab
    }

    /// Closes it as a person does, and fails on anything a tab complained about.
    pub(crate) async fn closes(mut self) {
        let troubles = self.troubles.lock().unwrap().clone();
        assert!(troubles.is_empty(), "the browser complained: {troubles:#?}");
        ask(&self.asks, None, "Browser.close", json!({})).await;
        timeout(PATIENCE, self.child.wait()).await.expect("it ends").expect("a child ends");
        let gone = async || test_kill_process_group(self.group).is_err();
        eventually("no process of the browser is left", PATIENCE, gone).await;
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("what the browser complained about: {:#?}", self.troubles.lock().unwrap());
        }
        // Its group is its own; once everybody in it has ended, this finds nobody.
        kill_process_group(self.group, Signal::KILL).ok();
    }
}

/// What the person in front of it does.
impl Tab {
    /// Brings it to the front: a hidden tab takes neither clicks nor keys.
    pub(crate) async fn is_looked_at(&self) {
        self.does("Page.bringToFront", json!({})).await;
        self.finds("it is in front", "() => document.visibilityState === 'visible'").await;
    }

    /// Clicks the one element that `selector` names, once it can be clicked.
    pub(crate) async fn clicks(&self, selector: &str) {
        self.is_looked_at().await;
        let place = format!(
            "() => {{
                const all = [...document.querySelectorAll({selector})];
                if (all.length !== 1 || all[0].disabled) return null;
                all[0].scrollIntoView({{ block: 'nearest' }});
                const box = all[0].getBoundingClientRect();
                const [x, y] = [box.x + box.width / 2, box.y + box.height / 2];
                return all[0].contains(document.elementFromPoint(x, y)) ? {{ x, y }} : null;
            }}",
            selector = json!(selector),
        );
        let place = self.finds(&format!("{selector} can be clicked"), &place).await;
        let button = |kind: &str| {
            let (x, y) = (&place["x"], &place["y"]);
            json!({ "type": kind, "x": x, "y": y, "button": "left", "clickCount": 1 })
        };
        let method = "Input.dispatchMouseEvent";
        tokio::join!(
            self.does(method, button("mousePressed")),
            self.does(method, button("mouseReleased"))
        );
    }

    /// Clicks into the field, which is empty, and types.
    pub(crate) async fn types(&self, selector: &str, text: &str) {
        self.clicks(selector).await;
        self.does("Input.insertText", json!({ "text": text })).await;
        let field = json!(selector);
        let typed = format!("() => document.querySelector({field}).value === {}", json!(text));
        self.finds(&format!("{selector} holds {text:?}"), &typed).await;
    }

    /// Goes to the one element with this text, and presses Enter on it.
    pub(crate) async fn enters(&self, selector: &str, text: &str) {
        self.is_looked_at().await;
        let found = format!(
            "() => {{
                const all = [...document.querySelectorAll({selector})];
                const [found, ...more] = all.filter((one) => one.textContent.includes({text}));
                if (!found || more.length) return false;
                found.focus();
                return document.activeElement === found;
            }}",
            selector = json!(selector),
            text = json!(text),
        );
        self.finds(&format!("{selector} with {text:?} takes the focus"), &found).await;
        self.presses_enter().await;
    }

    pub(crate) async fn presses_enter(&self) {
        let key = |kind: &str| {
            json!({
                "type": kind, "key": "Enter", "code": "Enter", "text": "\r",
                "windowsVirtualKeyCode": 13,
            })
        };
        self.does("Input.dispatchKeyEvent", key("keyDown")).await;
        self.does("Input.dispatchKeyEvent", key("keyUp")).await;
    }
}

/// What the person in front of it sees.
impl Tab {
    /// Waits until something that can be seen, and is named by `selector`, contains `text`.
    pub(crate) async fn reads(&self, selector: &str, text: &str) {
        self.reads_within(PATIENCE, selector, text).await;
    }

    /// Like [`Tab::reads`], where it must not take long.
    pub(crate) async fn reads_within(&self, within: Duration, selector: &str, text: &str) {
        let what = format!("{} reads {text:?} in {selector}", self.name);
        eventually(&what, within, async || {
            let texts = self.texts(selector).await;
            texts.iter().any(|found| found.contains(text))
        })
        .await;
    }

    /// The text of everything named by `selector` that can be seen.
    pub(crate) async fn texts(&self, selector: &str) -> Vec<String> {
        let visible = format!(
            "() => [...document.querySelectorAll({})]
                .filter((one) => one.checkVisibility({{ visibilityProperty: true }}))
                .map((one) => one.textContent)",
            json!(selector),
        );
        let seen = self.evaluates(&visible).await;
        let texts = seen.as_array().expect("an array was asked for").iter().map(text).collect();
        *self.seen.lock().unwrap() = seen;
        texts
    }

    /// What this JavaScript function returns in the page, as JSON.
    pub(crate) async fn evaluates(&self, function: &str) -> Value {
        let call = json!({ "expression": format!("({function})()"), "returnByValue": true, "awaitPromise": true });
        let mut answer = self.does("Runtime.evaluate", call).await;
        let thrown = &answer["exceptionDetails"];
        assert!(thrown.is_null(), "{}: {function} throws {thrown}", self.name);
        answer["result"]["value"].take()
    }

    /// Waits until this JavaScript function returns something that is true, and returns it.
    async fn finds(&self, what: &str, function: &str) -> Value {
        let mut found = Value::Null;
        eventually(&format!("{}: {what}", self.name), PATIENCE, async || {
            found = self.evaluates(function).await;
            !matches!(found, Value::Null | Value::Bool(false))
        })
        .await;
        found
    }

    /// What this tab complained about so far; it is forgotten.
    pub(crate) fn troubles(&self) -> Vec<String> {
        let mut all = self.troubles.lock().unwrap();
        let mine = all.extract_if(.., |(session, _)| *session == self.session);
        mine.map(|(_, trouble)| trouble).collect()
    }

    async fn does(&self, method: &str, params: Value) -> Value {
        ask(&self.asks, Some(&self.session), method, params).await
    }

    pub(crate) async fn closes(self) {
        let target = json!({ "targetId": self.target });
        ask(&self.asks, None, "Target.closeTarget", target).await;
    }
}

impl Drop for Tab {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("{} read last: {:#}", self.name, self.seen.lock().unwrap());
        }
    }
}

/// Where it is installed.
fn binary() -> PathBuf {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let folders: Vec<_> = std::env::split_paths(&path).chain(["/usr/bin".into()]).collect();
    let places = NAMES.iter().flat_map(|name| folders.iter().map(move |folder| folder.join(name)));
    places.into_iter().find(|place| place.is_file()).unwrap_or_else(|| {
        panic!(
            "this story needs a browser, and there is none of {NAMES:?}: install the package \
             `chromium` (apt-get install chromium), or run ./test, which does"
        )
    })
}

/// Waits for the address it prints once it can be driven.
async fn listens(mut lines: Lines<BufReader<ChildStderr>>) -> String {
    let mut said = Vec::new();
    let found = timeout(START, async {
        while let Ok(Some(line)) = lines.next_line().await {
            if let Some((_, url)) = line.split_once("DevTools listening on ") {
                return Some(url.trim().to_owned());
            }
            said.push(line);
        }
        None
    });
    let found = found.await;
    let Ok(Some(url)) = found else { panic!("Chromium did not come up ({found:?}): {said:#?}") };
    // Nobody reads on, but a full pipe would make it wait.
    tokio::spawn(async move { while let Ok(Some(_)) = lines.next_line().await {} });
    url
}

/// One command, in a tab or in the browser itself, and its result.
async fn ask(
    asks: &UnboundedSender<Ask>,
    session: Option<&str>,
    method: &str,
    params: Value,
) -> Value {
    let mut command = json!({ "method": method, "params": params });
    if let Some(session) = session {
        command["sessionId"] = json!(session);
    }
    let (done, result) = oneshot::channel();
    asks.send((command, done)).unwrap_or_else(|_| panic!("{method}: the browser is gone"));
    match timeout(PATIENCE, result).await {
        Ok(Ok(Ok(result))) => result,
        Ok(Ok(Err(error))) => panic!("{method}: {error}"),
        Ok(Err(_)) => panic!("{method}: the browser is gone"),
        Err(_) => panic!("{method}: not answered within {PATIENCE:?}"),
    }
}

/// Carries commands there and results back, and keeps what went wrong.
async fn speaks(
    mut stream: WebSocketStream<TcpStream>,
    mut asked: UnboundedReceiver<Ask>,
    troubles: Troubles,
) {
    let mut waiting = BTreeMap::new();
    let mut last = 0_u64;
    loop {
        tokio::select! {
            ask = asked.recv() => {
                let Some((mut command, done)) = ask else { return };
                last += 1;
                command["id"] = json!(last);
                waiting.insert(last, done);
                if stream.send(Message::text(command.to_string())).await.is_err() {
                    return; // whoever waits finds the browser gone
                }
            }
            heard = stream.next() => {
                let message = match heard {
                    Some(Ok(Message::Text(text))) => text,
                    Some(Ok(_)) => continue,
                    Some(Err(_)) | None => return,
                };
                let mut message: Value = serde_json::from_str(&message).expect("it speaks JSON");
                if let Some(done) = message["id"].as_u64().and_then(|id| waiting.remove(&id)) {
                    let error = &message["error"];
                    let result = if error.is_null() { Ok(()) } else { Err(error.to_string()) };
                    // Nobody may be waiting any more.
                    done.send(result.map(|()| message["result"].take())).ok();
                } else if let Some(trouble) = trouble(&message["method"], &message["params"]) {
                    let session = message["sessionId"].as_str().unwrap_or_default().to_owned();
                    troubles.lock().unwrap().push((session, trouble));
                }
            }
        }
    }
}

/// What an event says, where it is about something that must not happen.
fn trouble(method: &Value, params: &Value) -> Option<String> {
    let bad = match method.as_str()? {
        "Runtime.exceptionThrown" | "Inspector.targetCrashed" => true,
        "Runtime.consoleAPICalled" => matches!(params["type"].as_str(), Some("error" | "assert")),
        "Log.entryAdded" => params["entry"]["level"] == "error",
        "Audits.issueAdded" => params["issue"]["code"] == "ContentSecurityPolicyIssue",
        _ => false,
    };
    bad.then(|| format!("{method}: {params}"))
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_else(|| panic!("not a text: {value}")).to_owned()
}
