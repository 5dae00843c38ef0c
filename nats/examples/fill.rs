//! Fills a log with made-up talk, to measure readers against:
//! `cargo run --release -p qiyu-nats --example fill -- nats://127.0.0.1:4222 1000000 2000`
//! appends a million events of 2000 rooms. Never point it at a log that matters.

use std::{num::NonZeroU64, time::Duration};

use futures_util::{StreamExt, stream};
use qiyu_nats::{
    Bus, BusConfig, Profile,
    log::{APPEND_DEADLINE, AppendCondition},
};
use qiyu_schema::{
    AppId, ConnId, Incarnation, RoomId, Secret, UserId,
    event::{Event, MemberChange, Record, Sender},
    subject::{self, RoomKind},
};

/// Appends under way at once.
const WINDOW: usize = 500;
/// Of so many events one is a join; the others are said.
const JOIN_EVERY: u64 = 20;

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut args = std::env::args().skip(1);
    let url = args.next().ok_or("usage: fill NATS_URL EVENTS ROOMS")?;
    let events: u64 = args.next().unwrap_or_else(|| "1000000".to_owned()).parse()?;
    let rooms: u64 = args.next().unwrap_or_else(|| "2000".to_owned()).parse()?;
    let hour = Duration::from_secs(3600);
    let bus = Bus::connect(&BusConfig {
        url: Secret::new(url),
        name: "fill".to_owned(),
        replicas: 1,
        retain: 72 * hour,
        ack_wait: Duration::from_secs(4),
        profile: Profile::Default,
    })
    .await?;
    bus.provision().await?;
    let app: AppId = "10001".parse()?;
    let gateway = Incarnation { id: "filler".parse()?, epoch: qiyu_nats::now_ms() };
    let appends = (0..events).map(|n| {
        let (bus, gateway) = (bus.clone(), gateway.clone());
        async move {
            let room = RoomId::try_from(n % rooms + 1)?;
            let user = UserId::try_from(100_000 + n % 5_000)?;
            let connection = ConnId(NonZeroU64::MIN.saturating_add(n % 5_000));
            let (kind, event) = if n % JOIN_EVERY == 0 {
                let changes = vec![MemberChange::Joined { connection, user, resumed: false }];
                let gateway = gateway.clone();
                (RoomKind::Members, Event::MembersChanged { app, room, gateway, changes })
            } else {
                let data = format!(
                    r#"{{"userId":{user},"roomId":{room},"type":1,"content":"message number {n}","senderName":"filler {user}","senderAvatar":"https://faces.example/{user}.png","createTime":{}}}"#,
                    qiyu_nats::now_ms()
                );
                let client_msg_id = None;
                let (by, connection) = (Some(gateway.clone()), Some(connection));
                let sender = Sender { user: Some(user), gateway: by, connection, client_msg_id };
                (RoomKind::Msg, Event::RoomMessageSent { app, room, sender, biz_code: 5555, data })
            };
            let (subject, key) = (subject::room(app, room, kind), format!("fill:{gateway}:{n}"));
            let record = Record::at(qiyu_nats::now_ms(), event);
            bus.append(subject, &record, &key, AppendCondition::Any, APPEND_DEADLINE).await?;
            Ok::<(), Box<dyn std::error::Error>>(())
        }
    });
    let mut appends = stream::iter(appends).buffered(WINDOW);
    while let Some(appended) = appends.next().await {
        appended?;
    }
    Ok(())
}
