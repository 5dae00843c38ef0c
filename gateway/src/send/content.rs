//! Content checks: a list of words, and a webhook if one is configured.
//!
//! They run before the append: a message with a receipt is never taken back.
//! If the webhook does not respond in time, a setting decides.

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

use crate::metrics::Metrics;

/// How often the file of words is checked for changes.
const WORDS_POLL_INTERVAL: Duration = Duration::from_secs(2);
/// Words in the list at most.
const WORDS_MAX: usize = 100_000;
/// Requests to the webhook at once. Further ones wait, within their timeout.
const WEBHOOK_REQUESTS_MAX: usize = 256;
/// Bytes of a webhook response at most.
const RESPONSE_BYTES_MAX: usize = 64 * 1024;

/// The settings of the content checks.
#[derive(Clone, Debug)]
pub struct ContentConfig {
    /// One word a line; `#` begins a comment. The file may be absent, and its
    /// changes are picked up.
    pub words_file: PathBuf,
    /// Receives every content that the words let pass. `None`: no webhook.
    pub webhook: Option<String>,
    pub webhook_timeout: Duration,
    pub webhook_failure_policy: WebhookFailurePolicy,
}

/// The decision about a message when the webhook does not respond in time, or
/// not in its format.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WebhookFailurePolicy {
    /// The message is stored, and the failure is counted.
    Accept,
    /// The sender receives 5000 and may send it again.
    Refuse,
}

/// An error in the configuration of the content checks.
#[derive(Debug, thiserror::Error)]
pub enum ContentError {
    #[error("read the words in {}", path.display())]
    Words { path: PathBuf, source: std::io::Error },
    #[error("{} has more than {WORDS_MAX} words", path.display())]
    TooManyWords { path: PathBuf },
    #[error("compile the words in {}", path.display())]
    Compile { path: PathBuf, source: aho_corasick::BuildError },
    #[error("create the client of the content webhook")]
    Webhook(#[source] reqwest::Error),
}

/// The content of a message with its context, as the webhook receives it.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct ContentQuery<'a> {
    pub(crate) app_id: AppId,
    pub(crate) user_id: UserId,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) room_id: Option<RoomId>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) object_id: Option<UserId>,
    pub(crate) biz_code: i32,
    pub(crate) content: &'a str,
}

/// The reason why a content does not pass.
#[derive(Debug, PartialEq)]
pub(crate) enum ContentObjection {
    /// A word or the webhook refused it. `reason` is for the log.
    Refused { reason: String },
    /// The webhook did not decide in time.
    Unknown,
}

/// The content checks of a gateway.
pub(crate) struct ContentChecker {
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
    request_permits: Semaphore,
}

#[derive(Deserialize)]
struct WebhookResponse {
    allow: bool,
    #[serde(default)]
    reason: String,
}

#[derive(Debug, thiserror::Error)]
enum WebhookError {
    #[error("no response within {0:?}")]
    Timeout(Duration),
    #[error("send the request to the webhook")]
    Request(#[from] reqwest::Error),
    #[error("the response is longer than {RESPONSE_BYTES_MAX} bytes")]
    TooLong,
    #[error("the response is not {{\"allow\":bool,\"reason\":string}}")]
    Unreadable(#[from] serde_json::Error),
}

impl ContentChecker {
    /// Reads the words and prepares the webhook.
    pub(crate) fn new(config: ContentConfig, metrics: Metrics) -> Result<Self, ContentError> {
        let words = read_words(&config.words_file)?.map(Arc::new);
        // Fails if a provider is installed already. This is the one that NATS uses.
        rustls::crypto::ring::default_provider().install_default().ok();
        let webhook = match &config.webhook {
            Some(url) => Some(Webhook {
                client: reqwest::Client::builder()
                    .timeout(config.webhook_timeout)
                    .redirect(reqwest::redirect::Policy::none())
                    .build()
                    .map_err(ContentError::Webhook)?,
                url: url.clone(),
                request_permits: Semaphore::new(WEBHOOK_REQUESTS_MAX),
            }),
            None => None,
        };
        Ok(Self { config, words: RwLock::new(words), webhook, metrics })
    }

    /// Returns whether the content may be stored.
    pub(crate) async fn check(&self, query: &ContentQuery<'_>) -> Result<(), ContentObjection> {
        let words = self.words.read().clone();
        if let Some(word) = words.and_then(|words| words.first_match(query.content)) {
            return Err(ContentObjection::Refused { reason: format!("word: {word}") });
        }
        let Some(webhook) = &self.webhook else { return Ok(()) };
        let timeout = self.config.webhook_timeout;
        let response = tokio::time::timeout(timeout, webhook.request(query)).await;
        match response.unwrap_or(Err(WebhookError::Timeout(timeout))) {
            Ok(WebhookResponse { allow: true, .. }) => Ok(()),
            Ok(WebhookResponse { reason, .. }) => {
                Err(ContentObjection::Refused { reason: format!("webhook: {reason}") })
            }
            Err(error) => {
                self.metrics.content_checks_failed.inc();
                let policy = self.config.webhook_failure_policy;
                warn!(error = %chain(&error), ?policy, "content webhook failed");
                match policy {
                    WebhookFailurePolicy::Accept => Ok(()),
                    WebhookFailurePolicy::Refuse => Err(ContentObjection::Unknown),
                }
            }
        }
    }

    /// Reloads the words after each change of the file, until `stop`. If the file
    /// cannot be read, the words of before stay in force.
    pub(crate) async fn watch_words(self: Arc<Self>, stop: CancellationToken) {
        let mut failure_logged = false;
        while stop.run_until_cancelled(tokio::time::sleep(WORDS_POLL_INTERVAL)).await.is_some() {
            let path = &self.config.words_file;
            let modified = tokio::fs::metadata(path).await.ok().and_then(|m| m.modified().ok());
            if modified == self.words.read().as_ref().and_then(|words| words.modified) {
                continue;
            }
            match read_words(path) {
                Ok(words) => {
                    let patterns = words.as_ref().map_or(0, |w| w.matcher.patterns_len());
                    info!(path = %path.display(), words = patterns, "words reloaded");
                    *self.words.write() = words.map(Arc::new);
                    failure_logged = false;
                }
                Err(error) if !failure_logged => {
                    error!(error = %chain(&error), "words not reloaded, the old ones stay in force");
                    failure_logged = true; // once, not every two seconds
                }
                Err(_) => {}
            }
        }
    }
}

impl Words {
    /// Returns the first word of the list that `content` contains, in any case.
    fn first_match(&self, content: &str) -> Option<String> {
        let folded = content.to_lowercase();
        let found = self.matcher.find(&folded)?;
        Some(folded[found.range()].to_owned())
    }
}

impl Webhook {
    async fn request(&self, query: &ContentQuery<'_>) -> Result<WebhookResponse, WebhookError> {
        let _permit = self.request_permits.acquire().await.ok(); // never closed
        let request = self.client.post(&self.url).json(query);
        let mut response = request.send().await?.error_for_status()?;
        let mut body = Vec::new();
        while let Some(chunk) = response.chunk().await? {
            if body.len() + chunk.len() > RESPONSE_BYTES_MAX {
                return Err(WebhookError::TooLong);
            }
            body.extend_from_slice(&chunk);
        }
        Ok(serde_json::from_slice(&body)?)
    }
}

/// Reads the list of words. `None`: there is no such file, so no word is refused.
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
    if words.len() > WORDS_MAX {
        return Err(ContentError::TooManyWords { path: path.clone() });
    }
    let matcher = AhoCorasick::new(&words);
    let matcher = matcher.map_err(|source| ContentError::Compile { path: path.clone(), source })?;
    Ok(Some(Words { matcher, modified }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_word_is_found_in_any_case_and_script() {
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
            assert_eq!(words.first_match(content).as_deref(), found, "{content}");
        }
        assert!(read_words(&file).unwrap().is_none(), "no file, no words");
    }
}
