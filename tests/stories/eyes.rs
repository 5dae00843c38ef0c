//! What an operator sees: metrics, the alerts and the dashboard made of them, `qiyu top`, logs.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::PathBuf;

use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::trace::v1::Span;
use prost::Message as _;
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};

use crate::harness::{PATIENCE, Stack, eventually, run_to_end};

const ALL_APART: &[&str] = &["fanout", "presence", "living", "api", "gateway", "gateway"];

fn file(path: &str) -> String {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(path);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// The names under which a process's metrics are read: those of `# TYPE`, with what the format
/// puts behind them.
fn sample_names(metrics: &str) -> BTreeSet<String> {
    let types = metrics.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split_once(' '));
    let names = types.flat_map(|(name, kind)| {
        let endings: &[&str] = match kind {
            "counter" => &["_total"],
            "histogram" => &["_bucket", "_sum", "_count"],
            _ => &[""],
        };
        endings.iter().map(move |ending| format!("{name}{ending}"))
    });
    names.collect()
}

/// Every metric of ours that an expression names.
fn metrics_in(expression: &str) -> BTreeSet<String> {
    let part = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let words = expression.split(|c| !part(c));
    let ours = words.filter(|word| word.starts_with("qiyu_") || word.starts_with("process_"));
    ours.map(str::to_owned).collect()
}

/// (name, expression) of every alert.
fn alerts() -> BTreeMap<String, String> {
    let text = file("deploy/prometheus/alerts.yaml");
    let (mut alerts, mut name) = (BTreeMap::new(), String::new());
    for line in text.lines().map(str::trim) {
        if let Some(alert) = line.strip_prefix("- alert: ") {
            alert.clone_into(&mut name);
        } else if let Some(expression) = line.strip_prefix("expr: ") {
            alerts.insert(name.clone(), expression.to_owned());
        }
    }
    assert!(alerts.len() > 10 && alerts.values().all(|expression| expression.len() > 5));
    alerts
}

/// (title, expression) of everything the dashboard shows.
fn panels() -> Vec<(String, String)> {
    let dashboard: Value = serde_json::from_str(&file("deploy/grafana/qiyu.json")).unwrap();
    let panels = dashboard["panels"].as_array().unwrap().iter().flat_map(|panel| {
        let title = panel["title"].as_str().unwrap().to_owned();
        let targets = panel["targets"].as_array().cloned().unwrap_or_default();
        let expressions = targets.into_iter().map(|t| t["expr"].as_str().unwrap().to_owned());
        expressions.map(move |expression| (title.clone(), expression)).collect::<Vec<_>>()
    });
    let panels: Vec<_> = panels.collect();
    assert!(panels.len() > 20);
    panels
}

#[tokio::test]
async fn alerts_and_dashboard_ask_for_metrics_there_are() {
    let verifying = [ALL_APART, &["verify"]].concat();
    let stack = Stack::roles(&verifying, &[("QIYU_VERIFY_EVERY", "1s")]).await;
    stack.room().await; // the api counts what it answers
    eventually("something was compared with the log", PATIENCE * 3, async || {
        1.0 <= stack.metric("qiyu_verify_runs_total").await
    })
    .await;
    let mut there = BTreeSet::new();
    for (_, reply) in stack.get_from_each("/metrics").await {
        there.extend(sample_names(&reply.text()));
    }
    stack.stop().await;
    for (what, expression) in alerts().into_iter().chain(panels()) {
        for metric in metrics_in(&expression) {
            assert!(there.contains(&metric), "{what} asks for {metric}, which nobody measures");
        }
    }
}

#[test]
fn every_alert_is_explained() {
    let guide = file("docs/OPERATING.md");
    for alert in alerts().keys() {
        let told = guide.contains(&format!("**{alert}.**"));
        assert!(told, "docs/OPERATING.md does not say what {alert} means");
    }
}

#[tokio::test]
async fn a_message_is_measured_on_its_way() {
    let stack = Stack::roles(ALL_APART, &[]).await;
    let room = stack.room().await;
    let (one, other) = (stack.gateway(1), stack.gateway(2));
    let ann = stack.person("ann").await.via(&one).ws_into(&room).await;
    let mut bob = stack.person("bob").await.via(&other).ws_into(&room).await;
    let mut cid = stack.person("cid").await.via(&other).tcp_into(&room).await;
    for n in 0..20 {
        let said = format!("word {n}");
        ann.says(&room, &said);
        bob.hears(&said).await;
        cid.hears(&said).await;
    }
    for measured in ["append", "delivery", "acknowledgement"] {
        let count = format!("qiyu_gateway_{measured}_duration_seconds_count");
        // One observation for each message, whatever number of people hears it.
        eventually(&count, PATIENCE, async || stack.metric(&count).await == 20.0).await;
        let sum = stack.metric(&format!("qiyu_gateway_{measured}_duration_seconds_sum")).await;
        assert!(0.0 < sum && sum < 20.0 * PATIENCE.as_secs_f64(), "{measured}: {sum}");
    }
    assert!(20.0 <= stack.metric("qiyu_fanout_handover_duration_seconds_count").await);
    assert_eq!(stack.metric("qiyu_fanout_partitions_unowned").await, 0.0);
    assert!(stack.metric("qiyu_fanout_partition_lag_seconds").await < 1.0);
    assert!(stack.metric("process_cpu_seconds_total").await > 0.0);
    stack.stop().await;
}

#[tokio::test]
async fn top_shows_who_is_at_work() {
    let stack = Stack::roles(ALL_APART, &[]).await;
    let room = stack.room().await;
    let ann = stack.person("ann").await.via(&stack.gateway(1)).ws_into(&room).await;
    let mut bob = stack.person("bob").await.via(&stack.gateway(2)).ws_into(&room).await;
    for n in 0..30 {
        ann.says(&room, &format!("word {n}"));
        bob.hears(&format!("word {n}")).await;
    }
    let nats = stack.nats_url();
    let once = ["top", "--once", "--nats-url", nats.as_str()];
    let output = run_to_end(&once, &[]).await;
    let shown = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{shown}{}", String::from_utf8_lossy(&output.stderr));
    for line in ["gateways 2", "connections 2"] {
        assert!(shown.contains(line), "no {line} in {shown}");
    }
    let line = |start: &str| {
        let line = shown.lines().find(|line| line.split_whitespace().next() == Some(start));
        let line = line.unwrap_or_else(|| panic!("no line of {start} in {shown}"));
        line.split_whitespace().map(str::to_owned).collect::<Vec<_>>()
    };
    for gateway in ["g1", "g2"] {
        let line = line(gateway);
        assert_eq!((line[1].as_str(), line.last().unwrap().as_str()), ("1", "serving"), "{shown}");
    }
    let hottest = line(&room.to_string());
    assert!(hottest[2].parse::<f64>().unwrap() > 0.0 && hottest[3] == "2", "{shown}");
    stack.stop().await;

    let output = run_to_end(&["top", "--once", "--data-dir", &stack_less()], &[]).await;
    assert!(!output.status.success());
    assert!(String::from_utf8_lossy(&output.stderr).contains("no qiyu runs"), "{output:?}");
}

/// A directory nobody ever used.
fn stack_less() -> String {
    std::env::temp_dir().join("qiyu-nobody-was-here").display().to_string()
}

#[tokio::test]
async fn a_bench_counts_what_it_hears() {
    let stack = Stack::with(&[("QIYU_CONNECT_RATE", "10000"), ("QIYU_SEND_RATE", "10000")]).await;
    let url = format!("http://{}", stack.door().http);
    let small = ["--url", &url, "--clients", "5", "--seconds", "1"];
    for scenario in [
        &["hot", "--window", "2"][..],
        &["many", "--rooms", "2", "--rate", "5"],
        &["pairs", "--rate", "20"],
    ] {
        let arguments = [&["bench"][..], scenario, &small[..]].concat();
        let output = run_to_end(&arguments, &[]).await;
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        let right = " 0 lost, 0 doubled, 0 out of order, 0 refused, 0 connections broken";
        assert!(said.contains(right), "{scenario:?}: {said}{output:?}");
        // On a busy machine the load may be late or the numbers noise; the count is right anyway.
        assert!(matches!(output.status.code(), Some(0 | 2 | 3)), "{scenario:?}: {said}");
    }
    stack.stop().await;
}

#[tokio::test]
async fn a_message_can_be_followed_through_the_logs() {
    let stack =
        Stack::roles(ALL_APART, &[("QIYU_LOG", "debug"), ("QIYU_LOG_FORMAT", "json")]).await;
    let room = stack.room().await;
    let mut ann = stack.person("ann").await.via(&stack.gateway(1)).ws_into(&room).await;
    let mut bob = stack.person("bob").await.via(&stack.gateway(2)).ws_into(&room).await;
    let msg_id = ann.says_with_id(&room, "follow-me", "follow-me").await.to_string();
    bob.hears("follow-me").await;
    let steps =
        ["message stored", "envelope handed over", "message put on queues", "message settled"];
    eventually("every step is logged", PATIENCE, async || {
        let log = stack.log();
        let told = log.lines().filter_map(|line| {
            let line: Value = serde_json::from_str(line).unwrap_or_else(|_| panic!("{line}"));
            let ours = line["msg_id"] == msg_id.as_str();
            ours.then(|| line["message"].as_str().unwrap_or_default().to_owned())
        });
        let told: BTreeSet<String> = told.collect();
        steps.iter().all(|step| told.contains(*step))
    })
    .await;
    let stored = stack.log();
    let stored = stored.lines().find(|line| line.contains("message stored")).unwrap();
    let stored: Value = serde_json::from_str(stored).unwrap();
    assert_eq!(stored["room"], room.to_string(), "{stored}");
    assert!(stored["partition"].as_str().unwrap().starts_with('p'), "{stored}");
    stack.stop().await;
}

/// A collector of traces: its URL, and every span it gets with the name of who sent it.
async fn collector() -> (String, UnboundedReceiver<(String, Span)>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/v1/traces", listener.local_addr().unwrap());
    let (tell, told) = unbounded_channel();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let tell = tell.clone();
            tokio::spawn(async move {
                let mut input = Vec::new();
                while stream.read_buf(&mut input).await.is_ok_and(|bytes| bytes > 0) {
                    let Some(end) = input.windows(4).position(|four| four == b"\r\n\r\n") else {
                        continue;
                    };
                    let head = String::from_utf8_lossy(&input[..end]).to_lowercase();
                    let length = head.lines().find_map(|line| line.strip_prefix("content-length:"));
                    let length: usize = length.unwrap().trim().parse().unwrap();
                    if input.len() < end + 4 + length {
                        continue;
                    }
                    let body = &input[end + 4..end + 4 + length];
                    let request = ExportTraceServiceRequest::decode(body).unwrap();
                    for spans in request.resource_spans {
                        let resource = format!("{:?}", spans.resource);
                        for span in spans.scope_spans.into_iter().flat_map(|scope| scope.spans) {
                            tell.send((resource.clone(), span)).ok();
                        }
                    }
                    input.drain(..end + 4 + length);
                    stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n").await.ok();
                }
            });
        }
    });
    (url, told)
}

#[tokio::test]
async fn a_message_leaves_one_trail_through_all_processes() {
    let (url, mut told) = collector().await;
    let settings = [("QIYU_OTLP_URL", url.as_str()), ("QIYU_TRACE_RATIO", "1")];
    let stack = Stack::roles(ALL_APART, &settings).await;
    let room = stack.room().await;
    let mut ann = stack.person("ann").await.via(&stack.gateway(1)).ws_into(&room).await;
    let mut bob = stack.person("bob").await.via(&stack.gateway(2)).ws_into(&room).await;
    let msg_id = ann.says_with_id(&room, "follow-me", "follow-me").await.to_string();
    bob.hears("follow-me").await;
    stack.owes_nothing().await;
    stack.stop().await; // sends what is left
    let mut spans = Vec::new();
    while let Ok(span) = told.try_recv() {
        spans.push(span);
    }
    let named = |name: &str| {
        let mut found = spans.iter().filter(|(_, span)| span.name == name);
        let about = |span: &Span| format!("{:?}", span.attributes).contains(&msg_id);
        let found = match name {
            "append" | "settle" => found.find(|(_, span)| name == "settle" || about(span)),
            _ => found.next(),
        };
        found.unwrap_or_else(|| panic!("no span {name} among {spans:?}"))
    };
    let (way, mut parent) = (["accept", "append", "fan out", "deliver", "settle"], Vec::new());
    for (name, role) in way.into_iter().zip(["gateway", "gateway", "fanout", "gateway", "gateway"])
    {
        let (resource, span) = named(name);
        assert!(resource.contains(&format!("qiyu-{role}")), "{name} comes from {resource}");
        assert_eq!(span.trace_id, named("accept").1.trace_id, "{name} is of another trace");
        assert_eq!(span.parent_span_id, parent, "{name} follows something else: {spans:?}");
        assert!(span.start_time_unix_nano <= span.end_time_unix_nano);
        parent.clone_from(&span.span_id);
    }
}
