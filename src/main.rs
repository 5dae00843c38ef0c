//! qiyu: a live-room messaging backend whose every delivery is a recorded fact.

mod bench;
mod health;
mod http;
mod ops;
mod process;
mod rebuild;
mod run;
mod settings;
mod top;
mod traces;
mod up;

use std::{env, io::IsTerminal as _, process::ExitCode, time::Duration};

use anyhow::Context as _;
use clap::{Arg, ArgAction, ArgMatches, Command};
use qiyu_explain::{access, replay, trace, verify};
use qiyu_nats::server;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing_subscriber::EnvFilter;

use crate::{
    run::{Role, say},
    settings::{LogFormat, Purpose, SETTINGS, Settings, markdown},
    top::Show,
    traces::Traces,
    up::{Ground, note},
};

/// What a second Ctrl-C exits with, as a shell would show it.
const INTERRUPTED: i32 = 130;
/// What a wrong command line or setting exits with, as clap does.
const USAGE: u8 = 2;

fn main() -> ExitCode {
    let mut args = env::args_os().skip(1);
    if args.next().is_some_and(|first| first == server::CHILD_COMMAND) {
        return match server::exec_child(args) {
            Ok(never) => match never {},
            Err(error) => failure(&error.into()),
        };
    }
    let matches = command().get_matches();
    let (name, arguments) = matches.subcommand().unwrap_or(("up", &matches));
    let flag = |name: &str| arguments.get_one::<String>(name).cloned();
    let settings = match Settings::resolve(&purpose(name, arguments), &flag, env::vars_os()) {
        Ok(settings) => settings,
        Err(mistakes) => {
            note(&mistakes.to_string());
            return ExitCode::from(USAGE);
        }
    };
    if arguments.get_flag("print-config") {
        say(&settings.to_string());
        return ExitCode::SUCCESS;
    }
    if name != "top" {
        start_tracing(&settings, &purpose(name, arguments)); // its screen has no place for log lines
    }
    // Before there is a runtime, closed when there is none any more.
    let traces = match Traces::begin(&settings, &service(name, arguments)) {
        Ok(traces) => traces,
        Err(error) => return failure(&error),
    };
    let performed = perform(name, arguments, &settings);
    traces.close();
    match performed {
        Ok(code) => code,
        Err(error) => failure(&error),
    }
}

fn perform(name: &str, arguments: &ArgMatches, settings: &Settings) -> anyhow::Result<ExitCode> {
    match name {
        "bench" => {
            let bench = async |stop: CancellationToken| {
                Box::pin(bench::bench(arguments, settings, &stop)).await
            };
            return main_thread(bench);
        }
        "run" => {
            let roles = roles(arguments);
            if roles == [Role::Verify] {
                // Alone, it can let those go first whom people wait for.
                access::lower_priority();
            }
            main_thread(async |stop| Box::pin(run::run(&roles, settings, &stop)).await)
        }
        "rebuild" => main_thread(async |stop| {
            let rebuilding = Box::pin(rebuild::rebuild(settings));
            // What was done stays done, and it can be done again.
            stop.run_until_cancelled(rebuilding).await.unwrap_or(Ok(()))
        }),
        "provision" => main_thread(async |stop| Box::pin(run::provision(settings, &stop)).await),
        "health" => {
            say(&health::ask(settings.http_listen)?);
            Ok(())
        }
        "top" => {
            let show = if arguments.get_flag("once") { Show::Once } else { Show::Live };
            main_thread(async |stop| Box::pin(top::top(settings, show, &stop)).await)
        }
        "replay" => {
            access::lower_priority();
            let config = settings.explain();
            let page = replay::Page {
                router: qiyu_api::page_router(),
                serve: |listener, router, stop| Box::pin(http::serve(listener, router, stop)),
            };
            main_thread(async |stop| Box::pin(replay::run(arguments, &config, page, &stop)).await)
        }
        "settings" => {
            say(&markdown());
            Ok(())
        }
        "trace" => {
            access::lower_priority();
            let config = settings.explain();
            main_thread(async |_| Box::pin(trace::run(arguments, &config)).await)
        }
        "verify" => {
            access::lower_priority();
            let config = settings.explain();
            let verified = main_thread(async |_| Box::pin(verify::run(arguments, &config)).await);
            return Ok(verified.unwrap_or_else(|error| {
                failure(&error);
                ExitCode::from(verify::UNCHECKED)
            }));
        }
        "fetch-nats" => {
            let found = server::find(settings.nats_server.as_deref(), &mut note)?;
            say(&found.path.to_string_lossy());
            Ok(())
        }
        _ => {
            let ground = Ground::prepare(settings)?;
            main_thread(async |stop| Box::pin(up::up(settings, ground, &stop)).await)
        }
    }
    .map(|()| ExitCode::SUCCESS)
}

/// Runs `task` on this thread, which must be the main one, with a token that
/// SIGINT and SIGTERM cancel. Its helpers have all cores.
fn main_thread<T>(
    task: impl AsyncFnOnce(CancellationToken) -> anyhow::Result<T>,
) -> anyhow::Result<T> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let result = runtime.block_on(async {
        let tasks = TaskTracker::new();
        task(stop_on_signal(&tasks)?).await
    });
    runtime.shutdown_timeout(Duration::from_secs(2));
    result
}

/// The first signal asks everything to stop, the second one does not ask.
fn stop_on_signal(tasks: &TaskTracker) -> anyhow::Result<CancellationToken> {
    let stop = CancellationToken::new();
    let mut interrupt = signal(SignalKind::interrupt()).context("listen for SIGINT")?;
    let mut terminate = signal(SignalKind::terminate()).context("listen for SIGTERM")?;
    let asked = stop.clone();
    tasks.spawn(async move {
        loop {
            tokio::select! {
                biased; // any order would do
                _ = interrupt.recv() => {}
                _ = terminate.recv() => {}
            }
            if asked.is_cancelled() {
                note("stopped at once");
                std::process::exit(INTERRUPTED);
            }
            note("stopping; once more stops it at once");
            asked.cancel();
        }
    });
    Ok(stop)
}

fn start_tracing(settings: &Settings, purpose: &Purpose) {
    let level = match (purpose, settings.log.as_str()) {
        // Whoever looks wants to see what they look at, not how it was reached.
        (Purpose::Tool, "info") => "warn,qiyu_nats::bus=error,qiyu_nats::connection=error",
        (_, level) => level,
    };
    // async-nats tells of every reconnection twice; what it warns of is enough.
    let filter = EnvFilter::new(format!("async_nats=warn,{level}"));
    let lines = tracing_subscriber::fmt().with_writer(std::io::stderr).with_env_filter(filter);
    match settings.log_format {
        LogFormat::Text => lines.compact().with_ansi(std::io::stderr().is_terminal()).init(),
        LogFormat::Json => lines.json().flatten_event(true).init(),
    }
}

/// Tells the whole chain of causes. A cause its effect already quotes is left out.
fn failure(error: &anyhow::Error) -> ExitCode {
    let mut text = String::new();
    for cause in error.chain().map(ToString::to_string) {
        if text.is_empty() {
            text = cause;
        } else if !text.ends_with(&cause) {
            text += &format!(": {cause}");
        }
    }
    note(&text);
    ExitCode::FAILURE
}

/// What traces call this process.
fn service(name: &str, arguments: &ArgMatches) -> String {
    match name {
        "run" => {
            let names: Vec<&str> = roles(arguments).into_iter().map(Role::name).collect();
            format!("qiyu-{}", names.join("-"))
        }
        _ => "qiyu".to_owned(),
    }
}

fn purpose(name: &str, arguments: &ArgMatches) -> Purpose {
    match name {
        "up" => Purpose::Up,
        "run" => Purpose::Run(roles(arguments)),
        _ => Purpose::Tool,
    }
}

fn roles(arguments: &ArgMatches) -> Vec<Role> {
    let mut roles: Vec<Role> = arguments.get_many("roles").into_iter().flatten().copied().collect();
    roles.sort_unstable();
    roles.dedup();
    roles
}

/// The command line. Every setting is a flag of every command.
fn command() -> Command {
    let settings = SETTINGS.iter().map(|setting| {
        let default = setting.default.map(|value| format!(" [default {value}]"));
        Arg::new(setting.name)
            .long(setting.name)
            .value_name("VALUE")
            .help(format!("{}{}", setting.doc, default.unwrap_or_default()))
            .help_heading("Settings (each is also a variable: --ack-wait is QIYU_ACK_WAIT)")
            .global(true)
    });
    let print_config = Arg::new("print-config")
        .long("print-config")
        .help("Show what every setting resolves to, and exit")
        .action(ArgAction::SetTrue)
        .global(true);
    let roles = Arg::new("roles")
        .help("gateway, fanout, presence, living, api, verify; several separated by commas")
        .required(true)
        .value_delimiter(',')
        .value_parser(|name: &str| name.parse::<Role>());
    let once = Arg::new("once")
        .long("once")
        .help("Show it once, as plain text")
        .action(ArgAction::SetTrue);
    Command::new("qiyu")
        .version(env!("CARGO_PKG_VERSION"))
        .about(env!("CARGO_PKG_DESCRIPTION"))
        .args(settings)
        .arg(print_config)
        .subcommand(Command::new("up").about("Run everything in this process (the default)"))
        .subcommand(bench::command())
        .subcommand(Command::new("top").about("Show who is at work in a running system").arg(once))
        .subcommand(Command::new("run").about("Run some roles on an existing NATS").arg(roles))
        .subcommand(replay::command())
        .subcommand(trace::command())
        .subcommand(verify::command(settings::duration))
        .subcommand(
            Command::new("rebuild")
                .about("Make the tables about rooms anew from the log; the system may run"),
        )
        .subcommand(
            Command::new("provision").about(
                "Make every stream and bucket on an existing NATS, or bring them up to date",
            ),
        )
        .subcommand(
            Command::new("health")
                .about("Ask the process that listens on --http-listen whether it is ready"),
        )
        .subcommand(
            Command::new("settings")
                .about("Print the table of settings as docs/OPERATING.md has it")
                .hide(true),
        )
        .subcommand(
            Command::new("fetch-nats")
                .about("Find a nats-server or fetch the pinned one, and print its path"),
        )
}
