//! Many rooms, each with a few listeners and a speaker who speaks when it is
//! due, whatever the system does: how long deliveries take.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use tokio::time::{Instant, sleep, sleep_until};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::{
    Asked, TAIL, WARM_UP,
    client::{Client, Hall, To},
    report::{Report, Stretch},
    site::Site,
};

/// Logins under way at once.
const LOGINS_AT_ONCE: usize = 64;

pub(crate) async fn run(site: &Site, asked: &Asked) -> anyhow::Result<Report> {
    let hall = Hall::new(None);
    let base = first_user();
    let members = asked.clients as u64 + 1;
    let mut speakers = Vec::new();
    for n in 0..asked.rooms as u64 {
        let anchor = site.person(base + n * members).await?;
        let room = site.room(&anchor).await?;
        speakers.push((hall.enter(site, &anchor, Some(room)).await?, To::Room(room)));
    }
    let rooms: Vec<u64> = speakers.iter().map(|(_, to)| room_of(*to)).collect();
    let listeners = (0..)
        .zip(&rooms)
        .flat_map(|(n, room)| (1..members).map(move |m| (base + n * members + m, Some(*room))));
    let _listeners = enter_all(site, &hall, listeners).await?;
    let load = format!(
        "many: {} rooms of {} listeners, {} messages a second in each",
        asked.rooms, asked.clients, asked.rate
    );
    let report = speak_when_due(site, &hall, speakers, asked, asked.rate, asked.clients).await?;
    Ok(Report { load, ..report })
}

/// Everybody speaks `each_per_second`, heard by `listeners` each.
pub(crate) async fn speak_when_due(
    site: &Site,
    hall: &Hall,
    speakers: Vec<(Client, To)>,
    asked: &Asked,
    each_per_second: f64,
    listeners: usize,
) -> anyhow::Result<Report> {
    let pause = Duration::from_secs_f64(1.0 / each_per_second.max(0.001));
    let (said, over, tasks) =
        (Arc::new(AtomicU64::new(0)), CancellationToken::new(), TaskTracker::new());
    let (began, all) = (Instant::now(), speakers.len().max(1));
    for (n, (client, to)) in speakers.into_iter().enumerate() {
        let (said, over, tally) = (Arc::clone(&said), over.clone(), Arc::clone(&hall.tally));
        // Spread over the pause, so that they do not all speak at once.
        let mut due = began + pause.mul_f64(n as f64 / all as f64);
        tasks.spawn(async move {
            let mut number = 0;
            while over.run_until_cancelled(sleep_until(due)).await.is_some() {
                number += 1;
                let late = u64::try_from(due.elapsed().as_micros()).unwrap_or(u64::MAX);
                let due_us = tally.now_us().saturating_sub(late);
                tally.sent(due_us);
                said.fetch_add(1, Ordering::Relaxed);
                if client.say(to, number, due_us).await.is_err() {
                    return; // a broken connection is counted where it listens
                }
                due += pause;
            }
        });
    }
    sleep(WARM_UP).await;
    let stretch = Stretch::begin(site, &hall.tally);
    sleep(asked.measured).await;
    let report = stretch.end(site, &hall.tally);
    let late = Some(hall.tally.late());
    over.cancel();
    tasks.close();
    tasks.wait().await;
    let expected = || {
        let refused = hall.tally.refused.load(Ordering::Relaxed);
        (said.load(Ordering::Relaxed) - refused) * listeners as u64
    };
    wait_for(hall, &expected).await;
    let report = report.with_content(&hall.tally, expected());
    hall.stop.cancel();
    Ok(Report { late, ..report })
}

/// Waits until as much was heard as is expected, or for too long.
pub(crate) async fn wait_for(hall: &Hall, expected: impl Fn() -> u64) {
    let until = Instant::now() + TAIL;
    while hall.tally.heard.load(Ordering::Relaxed) < expected() && Instant::now() < until {
        sleep(Duration::from_millis(20)).await;
    }
}

/// Brings everybody in.
pub(crate) async fn enter_all(
    site: &Site,
    hall: &Hall,
    people: impl Iterator<Item = (u64, Option<u64>)>,
) -> anyhow::Result<Vec<Client>> {
    stream::iter(people)
        .map(|(user, room)| async move {
            let person = site.person(user).await?;
            hall.enter(site, &person, room).await
        })
        .buffer_unordered(LOGINS_AT_ONCE)
        .try_collect()
        .await
}

/// Users nobody else has: a system may be put under load twice.
pub(crate) fn first_user() -> u64 {
    1_000_000_000 + u64::from(rand::random::<u32>()) * 100_000
}

fn room_of(to: To) -> u64 {
    match to {
        To::Room(room) => room,
        To::User(_) => 0,
    }
}
