//! What may not be said: a list of words, and a webhook if there is one.
//!
//! Asked before the log: what was receipted is never taken back. A webhook
//! that does not answer in time decides nothing; the setting does.

use std::{
    path::PathBuf,
    sync::Arc,
    time::{Duration, SystemTime},
};

use aho_corasick::AhoCorasick;
use parking_lot::RwLock;
use qiyu_nats::chain;
use qiyu_schema::{AppId, RoomId, UserId};
use serde::{Deserialize, Serialize};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use crate::{frame::Reason, metrics::Metrics};

/// How often the file is looked at for changes.
const LOOK_EVERY: Duration = Duration::from_secs(2);
/// Words in the list.
const WORDS_MAX: usize = 100_000;
/// Questions to the webhook at once; further ones wait, within their time limit.
const ASKING_MAX: usize = 256;
/// Of what the webhook says.
const ANSWER_BYTES_MAX: usize = 64 * 1024;

/// How content is checked.
#[derive(Clone, Debug)]
pub struct ContentConfig {
    /// One word a line, `#` begins a comment. May be absent; changes are picked up.
    pub words_file: PathBuf,
    /// Asked about everything the words let pass. `None`: nobody is.
    pub webhook: Option<String>,
    /// How long it may take.
    pub webhook_timeout: Duration,
    /// What its silence means.
    pub webhook_silence: Silence,
}

/// What it means when the webhook does not answer in time, or not sensibly.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Silence {
    /// The message goes out, and is counted.
    Accept,
    /// The sender is told 5000 and may try again.
    Refuse,
}

/// Content cannot be checked as configured.
#[derive(Debug, thiserror::Error)]
pub enum ContentError {
    /// The list of words.
    #[error("read the words in {}", path.display())]
    Words {
        /// Which file.
        path: PathBuf,
        /// Why not.
        source: std::io::Error,
    },
    /// The list of words is too long for one automaton.
    #[error("{} has more than {WORDS_MAX} words", path.display())]
    TooMany {
        /// Which file.
        path: PathBuf,
    },
    /// They could not be compiled.
    #[error("compile the words in {}", path.display())]
    Compile {
        /// Which file.
        path: PathBuf,
        /// Why not.
        source: aho_corasick::BuildError,
    },
    /// The client of the webhook.
    #[error("prepare asking the webhook")]
    Webhook(#[source] reqwest::Error),
}

/// Something somebody wants to say.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Said<'a> {
    pub(crate) app_id: AppId,
    pub(crate) user_id: UserId,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) room_id: Option<RoomId>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) object_id: Option<UserId>,
    pub(crate) biz_code: i32,
    pub(crate) content: &'a str,
}

/// Why something is not said.
#[derive(Debug, PartialEq)]
pub(crate) enum Objection {
    /// It may not be said; why, for the record.
    Refused(String),
    /// Nobody could tell in time.
    Unknown,
}

impl Objection {
    /// What the sender hears.
    pub(crate) fn reason(&self) -> Reason {
        match self {
            Self::Refused(_) => Reason::ContentRefused,
            Self::Unknown => Reason::NotStored,
        }
    }
}

/// The checks.
pub(crate) struct Content {
    config: ContentConfig,
    words: RwLock<Option<Arc<Words>>>,
    webhook: Option<Webhook>,
    metrics: Metrics,
}

struct Words {
    matcher: AhoCorasick,
    modified: Option<SystemTime>,
}

struct Webhook {
    client: reqwest::Client,
    url: String,
    places: Semaphore,
}

#[derive(Deserialize)]
struct Answer {
    allow: bool,
    #[serde(default)]
    reason: String,
}

#[derive(Debug, thiserror::Error)]
enum AskError {
    #[error("no answer within {0:?}")]
    Late(Duration),
    #[error("ask the webhook")]
    Request(#[from] reqwest::Error),
    #[error("the answer is longer than {ANSWER_BYTES_MAX} bytes")]
    TooLong,
    #[error("the answer is not {{\"allow\":bool,\"reason\":string}}")]
    Unreadable(#[from] serde_json::Error),
}

impl Content {
    /// Reads the words and prepares the webhook.
    pub(crate) fn new(config: ContentConfig, metrics: Metrics) -> Result<Self, ContentError> {
        let words = read_words(&config.words_file)?.map(Arc::new);
        // Whoever was first has chosen already; ours is the one NATS uses.
        rustls::crypto::ring::default_provider().install_default().ok();
        let webhook = match &config.webhook {
            Some(url) => Some(Webhook {
                client: reqwest::Client::builder()
                    .timeout(config.webhook_timeout)
                    .redirect(reqwest::redirect::Policy::none())
                    .build()
                    .map_err(ContentError::Webhook)?,
                url: url.clone(),
                places: Semaphore::new(ASKING_MAX),
            }),
            None => None,
        };
        Ok(Self { config, words: RwLock::new(words), webhook, metrics })
    }

    /// Whether it may be said.
    pub(crate) async fn check(&self, said: &Said<'_>) -> Result<(), Objection> {
        let words = self.words.read().clone();
        if let Some(word) = words.and_then(|words| words.found(said.content)) {
            return Err(Objection::Refused(format!("word: {word}")));
        }
        let Some(webhook) = &self.webhook else { return Ok(()) };
        let limit = self.config.webhook_timeout;
        let asked = tokio::time::timeout(limit, webhook.ask(said)).await;
        match asked.unwrap_or(Err(AskError::Late(limit))) {
            Ok(Answer { allow: true, .. }) => Ok(()),
            Ok(Answer { reason, .. }) => Err(Objection::Refused(format!("webhook: {reason}"))),
            Err(error) => {
                self.metrics.checks_failed.inc();
                let policy = self.config.webhook_silence;
                warn!(error = %chain(&error), ?policy, "content webhook gave no answer");
                match policy {
                    Silence::Accept => Ok(()),
                    Silence::Refuse => Err(Objection::Unknown),
                }
            }
        }
    }

    /// Picks changes of the file up until `stop`. A file that cannot be read
    /// changes nothing: what was refused a moment ago still is.
    pub(crate) async fn keep_fresh(self: Arc<Self>, stop: CancellationToken) {
        let mut complained = false;
        while stop.run_until_cancelled(tokio::time::sleep(LOOK_EVERY)).await.is_some() {
            let path = &self.config.words_file;
            let modified = tokio::fs::metadata(path).await.ok().and_then(|m| m.modified().ok());
            if modified == self.words.read().as_ref().and_then(|words| words.modified) {
                continue;
            }
            match read_words(path) {
                Ok(words) => {
                    let patterns = words.as_ref().map_or(0, |w| w.matcher.patterns_len());
                    info!(path = %path.display(), words = patterns, "words read anew");
                    *self.words.write() = words.map(Arc::new);
                    complained = false;
                }
                Err(error) if !complained => {
                    error!(error = %chain(&error), "words not read anew, the old ones still hold");
                    complained = true; // once, not every two seconds
                }
                Err(_) => {}
            }
        }
    }
}

impl Words {
    /// The first word of the list that `content` contains, whatever the case.
    fn found(&self, content: &str) -> Option<String> {
        let folded = content.to_lowercase();
        let found = self.matcher.find(&folded)?;
        Some(folded[found.range()].to_owned())
    }
}

impl Webhook {
    async fn ask(&self, said: &Said<'_>) -> Result<Answer, AskError> {
        let _place = self.places.acquire().await.ok(); // never closed
        let mut answer = self.client.post(&self.url).json(said).send().await?.error_for_status()?;
        let mut body = Vec::new();
        while let Some(chunk) = answer.chunk().await? {
            if ANSWER_BYTES_MAX < body.len() + chunk.len() {
                return Err(AskError::TooLong);
            }
            body.extend_from_slice(&chunk);
        }
        Ok(serde_json::from_slice(&body)?)
    }
}

/// `None`: there is no such file, so nothing is refused.
fn read_words(path: &PathBuf) -> Result<Option<Words>, ContentError> {
    let failed = |source| ContentError::Words { path: path.clone(), source };
    let modified = match std::fs::metadata(path) {
        Ok(metadata) => metadata.modified().ok(),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(failed(error)),
    };
    let text = std::fs::read_to_string(path).map_err(failed)?;
    let words: Vec<String> = text
        .lines()
        .map(|line| line.split('#').next().unwrap_or_default().trim().to_lowercase())
        .filter(|word| !word.is_empty())
        .collect();
    if WORDS_MAX < words.len() {
        return Err(ContentError::TooMany { path: path.clone() });
    }
    let matcher = AhoCorasick::new(&words);
    let matcher = matcher.map_err(|source| ContentError::Compile { path: path.clone(), source })?;
    Ok(Some(Words { matcher, modified }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_word_is_found_whatever_its_case_and_script() {
        let file = std::env::temp_dir().join(format!("qiyu-words-{}", std::process::id()));
        std::fs::write(&file, "Casino\n# a comment\n\n  赌博 # and another\nÄRGER\n").unwrap();
        let words = read_words(&file).unwrap().unwrap();
        std::fs::remove_file(&file).unwrap();
        for (content, found) in [
            ("come to the CASINO tonight", Some("casino")),
            ("来赌博吧", Some("赌博")),
            ("viel ärger", Some("ärger")),
            ("a comment", None),
            ("", None),
        ] {
            assert_eq!(words.found(content).as_deref(), found, "{content}");
        }
        assert!(read_words(&file).unwrap().is_none(), "no file, no words");
    }
}
