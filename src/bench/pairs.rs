//! Dialogues: in each pair one writes to the other when it is due, and what is
//! heard is acknowledged: how long 1:1 messages take.

use super::{
    Asked,
    client::{Hall, To},
    many::{enter_all, first_user, speak_when_due},
    report::Report,
    site::Site,
};

pub(crate) async fn run(site: &Site, asked: &Asked) -> anyhow::Result<Report> {
    let hall = Hall::new(None);
    let (base, pairs) = (first_user(), asked.clients as u64);
    let _listeners = enter_all(site, &hall, (0..pairs).map(|n| (base + pairs + n, None))).await?;
    let mut speakers = Vec::new();
    for n in 0..pairs {
        let person = site.person(base + n).await?;
        let client = hall.enter(site, &person, None).await?;
        speakers.push((client, To::User(base + pairs + n)));
    }
    let load = format!("pairs: {pairs} dialogues, {} messages a second in all", asked.rate);
    let each = asked.rate / pairs as f64;
    let report = speak_when_due(site, &hall, speakers, asked, each, 1).await?;
    Ok(Report { load, ..report })
}
