//! Playback of a room to WebSocket clients: the ordinary protocol, read-only, and the HTTP
//! calls that the project's page makes before it connects.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use anyhow::Context as _;
use axum::{Json, Router, extract::State, routing::post};
use futures_util::future::BoxFuture;
use qiyu_fanout::fold::Fold;
use qiyu_gateway::playback::{self, Playback, PlaybackEvent, Recording};
use qiyu_nats::{
    Bus,
    log::{LogEntry, ReadFrom},
};
use qiyu_schema::{
    AppId, MsgId, RoomId,
    event::{Event, Record, Sender},
    room::RoomCounts,
};
use serde_json::{Value, json};
use tokio::{
    net::TcpListener,
    sync::mpsc,
    time::{Instant, sleep_until},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::{
    pace::{Pace, Speed},
    selection::Selection,
};
use crate::{
    log::window::{LogWindow, ReadMode, WindowEnd},
    terminal::print,
};

/// Events that a viewer may be behind before the playback waits.
const AHEAD: usize = 256;
/// Interval of the counts, as in a living room.
const COUNTS_EVERY: Duration = Duration::from_secs(1);
/// The user id of every viewer: the smallest there is.
const VIEWER: u64 = 10_000;

/// The events of a playback.
pub(crate) enum PlaybackSource {
    Log { bus: Box<Bus>, until: WindowEnd },
    Capsule(Vec<LogEntry>),
}

/// Serves the playback of one room.
pub(crate) struct PlaybackServer {
    pub(crate) source: PlaybackSource,
    pub(crate) app: AppId,
    pub(crate) room: RoomId,
    pub(crate) name: Option<String>,
    /// The last sequence before the window.
    pub(crate) after: u64,
    /// Seed events of the room's state before the window.
    pub(crate) before: Vec<LogEntry>,
    pub(crate) speed: Speed,
    pub(crate) tasks: TaskTracker,
    pub(crate) stop: CancellationToken,
}

/// The page that shows a playback, and the HTTP server that serves it: both
/// belong to the program.
pub struct Page {
    pub router: Router,
    pub serve: fn(TcpListener, Router, CancellationToken) -> BoxFuture<'static, ()>,
}

/// Addresses to listen on, and the accepted origins.
pub(crate) struct ListenAddrs {
    pub(crate) http: SocketAddr,
    pub(crate) ws: SocketAddr,
    pub(crate) origins: Vec<String>,
}

/// Serves the playback until it is stopped.
pub(crate) async fn serve(
    server: PlaybackServer,
    listen_addrs: ListenAddrs,
    page: Page,
) -> anyhow::Result<()> {
    let bound = |what, address| async move {
        let listener = TcpListener::bind(address).await;
        listener.with_context(|| format!("listen on {address} ({what})"))
    };
    let page_listener = bound("--http-listen", listen_addrs.http).await?;
    let sockets = bound("--serve, --ws-listen", listen_addrs.ws).await?;
    let (page_addr, ws_addr) = (page_listener.local_addr()?, sockets.local_addr()?);
    let (stop, tasks, room) = (server.stop.clone(), server.tasks.clone(), server.room);
    let (app, server) = (server.app, Arc::new(server));
    let router = router(Arc::clone(&server), ws_addr, page.router);
    print(&format!(
        "room {room} is shown to everybody who connects (Ctrl-C ends it)\n  \
         {:<10} http://{page_addr}/#/room/{room}\n  {:<10} ws://{ws_addr}/",
        "page", "websocket"
    ));
    let shown = playback::serve(sockets, listen_addrs.origins, app, server, stop.clone());
    tokio::join!(shown, (page.serve)(page_listener, router, stop));
    tasks.close();
    tasks.wait().await;
    Ok(())
}

impl Recording for PlaybackServer {
    async fn open(&self, room: RoomId, after: Option<MsgId>) -> Option<Playback> {
        if room != self.room {
            return None;
        }
        // A viewer that returns continues at its position; a position before the
        // window is ignored.
        let start = MsgId::at(self.after);
        let after = after.filter(|after| start < *after).unwrap_or(start);
        let (tx, shown) = mpsc::channel(AHEAD);
        let filters = Selection::Room(self.app, self.room).filters();
        let window = match &self.source {
            PlaybackSource::Capsule(entries) => LogWindow::Capsule(entries.clone().into_iter()),
            PlaybackSource::Log { bus, until } => {
                let from = ReadFrom::After(self.after);
                LogWindow::of_log(Bus::clone(bus), filters, from, *until, ReadMode::Batched)
            }
        };
        let mut projector = Player {
            app: self.app,
            room: self.room,
            fold: Fold::default(),
            pace: Pace::new(self.speed),
            tx,
            told: None,
            told_at: Instant::now(),
        };
        for entry in &self.before {
            if let Ok(record) = entry.record() {
                projector.fold.apply(entry.msg_id(), record);
            }
        }
        let stop = self.stop.clone();
        self.tasks.spawn(async move {
            // The viewer's stream ends in any case.
            let run = projector.run(window, after);
            if let Some(Err(error)) = stop.run_until_cancelled(run).await {
                tracing::warn!(error = %format!("{error:#}"), "a viewer's reel broke");
            }
        });
        Some(Playback { position: after, events: shown })
    }
}

/// Sends one viewer the events of a playback.
struct Player {
    app: AppId,
    room: RoomId,
    fold: Fold,
    pace: Pace,
    tx: mpsc::Sender<PlaybackEvent>,
    told: Option<RoomCounts>,
    told_at: Instant,
}

/// The viewer has disconnected.
struct Gone;

impl Player {
    async fn run(mut self, mut window: LogWindow, after: MsgId) -> anyhow::Result<()> {
        let shown = self.all(&mut window, after).await;
        window.close().await;
        match shown {
            Ok(Ok(()) | Err(Gone)) => Ok(()),
            Err(error) => Err(error),
        }
    }

    async fn all(
        &mut self,
        window: &mut LogWindow,
        after: MsgId,
    ) -> anyhow::Result<Result<(), Gone>> {
        if self.tell_counts().await.is_err() {
            return Ok(Err(Gone));
        }
        while let Some(entry) = window.next().await? {
            let Ok(record) = entry.record() else { continue };
            if entry.msg_id() <= after {
                self.fold.apply(entry.msg_id(), record);
                continue;
            }
            if let Some(due) = self.pace.due(entry.written_ms)
                && self.wait(due).await.is_err()
            {
                return Ok(Err(Gone));
            }
            if self.show(entry.msg_id(), record).await.is_err() {
                return Ok(Err(Gone));
            }
        }
        Ok(self.tell_counts().await)
    }

    /// Waits until `due`, and sends the counts meanwhile, as a living room does.
    async fn wait(&mut self, due: Instant) -> Result<(), Gone> {
        let next = self.told_at + COUNTS_EVERY;
        if self.counts() != self.told && next < due {
            sleep_until(next).await;
            self.tell_counts().await?;
        }
        tokio::select! {
            biased; // the viewer may disconnect
            () = self.tx.closed() => Err(Gone),
            () = sleep_until(due) => Ok(()),
        }
    }

    async fn show(&mut self, msg_id: MsgId, record: Record) -> Result<(), Gone> {
        let open = self.counts().is_some();
        let shown = match &record.event {
            Event::RoomMessageSent { sender, biz_code, data, .. }
                if open && !self.is_repeat(sender, record.at_ms) =>
            {
                Some(PlaybackEvent::Message { msg_id, biz_code: *biz_code, data: data.clone() })
            }
            Event::RoomClosed { .. } => Some(PlaybackEvent::Closed { msg_id }),
            _ => None,
        };
        self.fold.apply(msg_id, record);
        if let Some(shown) = shown {
            self.send(shown).await?;
        }
        if COUNTS_EVERY <= self.told_at.elapsed() {
            self.tell_counts().await?;
        }
        Ok(())
    }

    /// Whether the message repeats a clientMsgId: it was not delivered then, either.
    fn is_repeat(&self, sender: &Sender, at_ms: u64) -> bool {
        let known = |name| self.fold.find_sent(self.app, sender.namespace(), name, at_ms);
        sender.client_msg_id.as_ref().and_then(known).is_some()
    }

    fn counts(&self) -> Option<RoomCounts> {
        self.fold.counts(self.app, self.room)
    }

    async fn tell_counts(&mut self) -> Result<(), Gone> {
        let (Some(counts), told) = (self.counts(), self.told.unwrap_or_default()) else {
            return Ok(());
        };
        self.told = Some(counts);
        self.told_at = Instant::now();
        if counts.watch_num != told.watch_num {
            self.send(PlaybackEvent::Viewers(counts.watch_num)).await?;
        }
        if counts.good_num != told.good_num {
            self.send(PlaybackEvent::Likes(counts.good_num)).await?;
        }
        Ok(())
    }

    async fn send(&self, shown: PlaybackEvent) -> Result<(), Gone> {
        self.tx.send(shown).await.map_err(|_| Gone)
    }
}

/// The state of the HTTP calls of the page.
struct PageApi {
    server: Arc<PlaybackServer>,
    ws: SocketAddr,
}

fn router(server: Arc<PlaybackServer>, ws: SocketAddr, page: Router) -> Router {
    let answers = Arc::new(PageApi { server, ws });
    Router::new()
        .route("/user/login", post(who))
        .route("/home/initPage", post(who))
        .route("/living/list", post(list))
        .route("/living/anchorConfig", post(room))
        .route("/im/getImConfig", post(ticket))
        .with_state(answers)
        .merge(page)
}

fn success(data: Value) -> Json<Value> {
    Json(json!({ "code": 200, "msg": "success", "data": data }))
}

async fn who() -> Json<Value> {
    success(json!({
        "loginStatus": true, "userId": VIEWER, "nickName": "观众 · viewer",
        "avatar": "/assets/avatar.svg", "showStartLivingBtn": false,
    }))
}

impl PageApi {
    fn name(&self) -> String {
        let server = &self.server;
        let name = server.name.clone().filter(|name| !name.is_empty());
        name.unwrap_or_else(|| format!("room {}", server.room))
    }
}

async fn list(State(answers): State<Arc<PageApi>>) -> Json<Value> {
    let row = json!({
        "id": answers.server.room, "roomName": answers.name(), "watchNum": 0, "goodNum": 0,
        "covertImg": "",
    });
    success(json!({ "list": [row], "hasNext": false }))
}

async fn room(State(answers): State<Arc<PageApi>>) -> Json<Value> {
    success(json!({
        "roomId": answers.server.room, "roomName": answers.name(), "anchor": false,
        "isAnchor": false, "anchorNickName": "(a recording)", "watchNum": 0, "userId": VIEWER,
    }))
}

async fn ticket(State(answers): State<Arc<PageApi>>) -> Json<Value> {
    success(json!({
        "token": "recording", "userId": VIEWER, "expiresIn": 300,
        "wsImServerAddress": answers.ws.to_string(), "tcpImServerAddress": "",
    }))
}
