//! One room, many listeners, one speaker with a fixed number of messages under
//! way: how much goes through.

use std::sync::atomic::Ordering;

use anyhow::Context as _;
use tokio::time::{Instant, timeout};

use super::{
    Asked, TAIL, WARM_UP,
    client::{Hall, To},
    many::{enter_all, first_user, wait_for},
    report::{Report, Stretch},
    site::Site,
    tally::Window,
};

pub(crate) async fn run(site: &Site, asked: &Asked) -> anyhow::Result<Report> {
    let window = Window::new(asked.window, asked.clients);
    let hall = Hall::new(Some(window.clone()));
    let base = first_user();
    let anchor = site.person(base).await?;
    let room = site.room(&anchor).await?;
    let listeners = (1..=asked.clients as u64).map(|n| (base + n, Some(room)));
    let _listeners = enter_all(site, &hall, listeners).await?;
    let speaker = hall.enter(site, &anchor, Some(room)).await?;
    let (began, mut stretch, mut said) = (Instant::now(), None, 0_u64);
    while began.elapsed() < WARM_UP + asked.measured {
        if stretch.is_none() && WARM_UP <= began.elapsed() {
            stretch = Some(Stretch::begin(site, &hall.tally));
        }
        let place = timeout(TAIL, window.places.acquire()).await;
        place.context("nothing was heard by everybody for too long")??.forget();
        said += 1;
        speaker.say(To::Room(room), said, hall.tally.now_us()).await?;
    }
    let stretch = stretch.unwrap_or_else(|| Stretch::begin(site, &hall.tally));
    let report = stretch.end(site, &hall.tally);
    let all = u32::try_from(asked.window).unwrap_or(u32::MAX);
    timeout(TAIL, window.places.acquire_many(all)).await.ok(); // what is missing is counted
    let stored = said - hall.tally.refused.load(Ordering::Relaxed);
    let expected = stored * asked.clients as u64;
    wait_for(&hall, || expected).await;
    let report = report.with_content(&hall.tally, expected);
    hall.stop.cancel();
    let load =
        format!("hot: 1 room, {} listeners, {} messages under way", asked.clients, asked.window);
    Ok(Report { load, ..report })
}
