//! People's names and pictures.

use std::{collections::HashMap, sync::Arc, time::Duration};

use qiyu_nats::now_ms;
use qiyu_schema::UserId;
use sqlx::{Any, AnyPool, QueryBuilder, Row, migrate::MigrateError};

use crate::database::{self, Reach};

/// The column's width in `t_user`.
pub(crate) const NAME_CHARS_MAX: usize = 35;
/// The column's width in `t_user`.
pub(crate) const AVATAR_BYTES_MAX: usize = 255;
/// Served by this crate, so that no foreign host learns who looks.
pub(crate) const AVATAR_DEFAULT: &str = "/assets/avatar.svg";
/// Likewise.
pub(crate) const BACKGROUND_DEFAULT: &str = "/assets/background.svg";

/// How long a statement may take: SQLite's 5 s for its write lock, and a moment more.
const STATEMENT_PATIENCE: Duration = Duration::from_secs(6);

/// The profiles did not do as asked.
#[derive(Debug, thiserror::Error)]
pub enum ProfileError {
    /// The database's directory could not be made.
    #[error("make the directory of {url}")]
    Directory {
        /// The database.
        url: String,
        /// Why.
        source: std::io::Error,
    },
    /// The database could not be reached.
    #[error("connect to {url}")]
    Connect {
        /// The database, without its password.
        url: String,
        /// Why.
        source: sqlx::Error,
    },
    /// The table could not be brought to today's shape.
    #[error("migrate the table of users")]
    Migrate(#[source] MigrateError),
    /// A statement failed.
    #[error("{doing} in the table of users")]
    Statement {
        /// What was attempted.
        doing: &'static str,
        /// Why.
        source: sqlx::Error,
    },
    /// It was not asked: it could not be reached a moment ago.
    #[error("{doing} in the table of users: the database is away")]
    Away {
        /// What was to be attempted.
        doing: &'static str,
    },
}

/// How somebody is shown.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Profile {
    pub(crate) nick_name: String,
    /// A URL, or empty.
    pub(crate) avatar: String,
}

impl Profile {
    /// Of somebody who never said.
    pub(crate) fn unknown(user: UserId) -> Self {
        Self { nick_name: format!("用户-{user}"), avatar: String::new() }
    }

    /// The picture, or the one everybody has.
    pub(crate) fn avatar_or_default(&self) -> &str {
        if self.avatar.is_empty() { AVATAR_DEFAULT } else { &self.avatar }
    }
}

/// A name as it may be shown: one line, not too long. `None`: nothing is left of it.
pub(crate) fn shown_name(raw: &str) -> Option<String> {
    let name: String = raw.chars().filter(|c| !c.is_control()).collect();
    let name: String = name.trim().chars().take(NAME_CHARS_MAX).collect();
    (!name.is_empty()).then_some(name)
}

/// Whether a page may load it as a picture: an http(s) URL or a path on the page's own site,
/// without control characters, or empty.
pub(crate) fn is_avatar(url: &str) -> bool {
    let web = ["http://", "https://"].iter().any(|scheme| url.starts_with(scheme));
    let web = web || !url.contains(':') && !url.starts_with("//");
    let one_line = !url.chars().any(char::is_control);
    url.is_empty() || (web && one_line && url.len() <= AVATAR_BYTES_MAX)
}

/// Everybody's profiles.
#[derive(Clone, Debug)]
pub(crate) struct Profiles {
    pool: AnyPool,
    reach: Arc<Reach>,
}

impl Profiles {
    /// Connects and migrates; makes a SQLite file and its directory if there is none.
    pub(crate) async fn open(url: &str) -> Result<Self, ProfileError> {
        Ok(Self { pool: database::open(url).await?, reach: Arc::default() })
    }

    /// The profiles of those who have one.
    pub(crate) async fn of(
        &self,
        users: &[UserId],
    ) -> Result<HashMap<UserId, Profile>, ProfileError> {
        const DOING: &str = "read profiles";
        if users.is_empty() {
            return Ok(HashMap::new()); // MySQL knows no empty IN ()
        }
        let failed = |source| ProfileError::Statement { doing: DOING, source };
        let mut query = QueryBuilder::<Any>::new(
            "SELECT user_id, nick_name, avatar FROM t_user WHERE user_id IN (",
        );
        let mut ids = query.separated(", ");
        for user in users {
            ids.push_bind(user.get().cast_signed()); // the bits are kept, so nothing is lost
        }
        query.push(")");
        let rows = self.bounded(DOING, query.build().fetch_all(&self.pool)).await?;
        let mut found = HashMap::new();
        for row in rows {
            let id = row.try_get::<i64, _>("user_id").map_err(failed)?;
            let nick_name = row.try_get("nick_name").map_err(failed)?;
            let avatar = row.try_get("avatar").map_err(failed)?;
            if let Ok(user) = UserId::try_from(id.cast_unsigned()) {
                found.insert(user, Profile { nick_name, avatar });
            }
        }
        Ok(found)
    }

    /// Writes a profile, if it says something new.
    pub(crate) async fn keep(&self, user: UserId, profile: &Profile) -> Result<(), ProfileError> {
        if self.of(&[user]).await?.get(&user) == Some(profile) {
            return Ok(()); // most often: a token brings the same name with every request
        }
        if self.update(user, profile).await? {
            return Ok(());
        }
        let now = now_ms().cast_signed();
        let inserted = sqlx::query(
            "INSERT INTO t_user (user_id, nick_name, avatar, create_time, update_time)
             VALUES (?, ?, ?, ?, ?)",
        )
        .bind(user.get().cast_signed())
        .bind(profile.nick_name.as_str())
        .bind(profile.avatar.as_str())
        .bind(now)
        .bind(now)
        .execute(&self.pool);
        match self.bounded("insert a profile", inserted).await {
            Err(ProfileError::Statement { source: sqlx::Error::Database(error), .. })
                if error.is_unique_violation() =>
            {
                self.update(user, profile).await.map(drop) // another request was faster
            }
            done => done.map(drop),
        }
    }

    /// Whether there was a row to change.
    async fn update(&self, user: UserId, profile: &Profile) -> Result<bool, ProfileError> {
        let updated = sqlx::query(
            "UPDATE t_user SET nick_name = ?, avatar = ?, update_time = ? WHERE user_id = ?",
        )
        .bind(profile.nick_name.as_str())
        .bind(profile.avatar.as_str())
        .bind(now_ms().cast_signed())
        .bind(user.get().cast_signed())
        .execute(&self.pool);
        Ok(0 < self.bounded("update a profile", updated).await?.rows_affected())
    }

    pub(crate) async fn close(&self) {
        self.pool.close().await;
    }

    /// A failed statement, or one that is not answered: it may have been carried out.
    async fn bounded<T>(
        &self,
        doing: &'static str,
        statement: impl Future<Output = Result<T, sqlx::Error>>,
    ) -> Result<T, ProfileError> {
        if !self.reach.may_ask() {
            return Err(ProfileError::Away { doing });
        }
        let done = tokio::time::timeout(STATEMENT_PATIENCE, statement).await;
        let done = done.unwrap_or(Err(sqlx::Error::PoolTimedOut));
        self.reach.learn(done.as_ref().err());
        done.map_err(|source| ProfileError::Statement { doing, source })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pictures_come_from_the_web_or_not_at_all() {
        for good in
            ["", "http://a", "https://a/b.png?c=d", "https://a/安 1.png", "/img/a.png", "a.png"]
        {
            assert!(is_avatar(good), "{good}");
        }
        let long = format!("https://{}", "a".repeat(AVATAR_BYTES_MAX));
        for bad in ["javascript:alert(1)", "data:image/png,x", "//a", "https://a\nb", &long] {
            assert!(!is_avatar(bad), "{bad}");
        }
    }

    #[test]
    fn names_are_one_line_and_short() {
        assert_eq!(shown_name(" a\n\u{0}b "), Some("ab".into()));
        assert_eq!(shown_name(" \t"), None);
        assert_eq!(shown_name(&"名".repeat(40)).unwrap().chars().count(), NAME_CHARS_MAX);
    }

    #[tokio::test]
    async fn a_profile_is_kept_and_changed() {
        let directory = tempfile::tempdir().unwrap();
        let url = format!("sqlite://{}/made/users.db", directory.path().display());
        let profiles = Profiles::open(&url).await.unwrap();
        let big: UserId = "18446744073709551615".parse().unwrap();
        let small: UserId = "10000".parse().unwrap();
        let profile = |name: &str| Profile { nick_name: name.into(), avatar: String::new() };
        for name in ["安", "安", "Ann"] {
            profiles.keep(big, &profile(name)).await.unwrap();
        }
        let found = profiles.of(&[big, small]).await.unwrap();
        assert_eq!(found, HashMap::from([(big, profile("Ann"))]));
    }
}
