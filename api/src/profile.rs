//! The names and pictures of users, in the table `t_user`.

use std::{collections::HashMap, time::Duration};

use qiyu_database::{Database, OpenError, Schema, StatementError};
use qiyu_nats::now_ms;
use qiyu_schema::UserId;
use sqlx::{Any, QueryBuilder, Row};

use crate::texts;

/// The column's width in `t_user`.
pub(crate) const NAME_CHARS_MAX: usize = 35;
/// The column's width in `t_user`.
pub(crate) const AVATAR_BYTES_MAX: usize = 255;
/// The default picture. This crate serves it, so that no other host learns of the viewers.
pub(crate) const AVATAR_DEFAULT: &str = "/assets/avatar.svg";
/// The default background of a room, which this crate serves too.
pub(crate) const BACKGROUND_DEFAULT: &str = "/assets/background.svg";

/// How long a statement waits for a connection, a new one included. A response without names is
/// better than a late one.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);

const SCHEMA: Schema = Schema {
    tables: "the table of users",
    migration: "users",
    migrations_table: "_sqlx_migrations_api",
    sqlite: include_str!("../migrations/sqlite/0001_users.sql"),
    mysql: include_str!("../migrations/mysql/0001_users.sql"),
};

/// The table of users could not be opened, read or written.
#[derive(Debug, thiserror::Error)]
#[error(transparent)]
pub enum ProfileError {
    Open(#[from] OpenError),
    Statement(#[from] StatementError),
}

/// The name and picture of a user.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Profile {
    pub(crate) nick_name: String,
    /// A URL, or empty.
    pub(crate) avatar: String,
}

impl Profile {
    /// Returns the profile of a user without a stored one.
    pub(crate) fn default_for(user: UserId) -> Self {
        Self { nick_name: texts::default_nick_name(user), avatar: String::new() }
    }

    /// Returns the picture, or the default one.
    pub(crate) fn avatar_or_default(&self) -> &str {
        if self.avatar.is_empty() { AVATAR_DEFAULT } else { &self.avatar }
    }
}

/// Returns a name as it may be shown: one line, not too long. `None`: nothing is left of it.
pub(crate) fn shown_name(raw: &str) -> Option<String> {
    let name: String = raw.chars().filter(|c| !c.is_control()).collect();
    let name: String = name.trim().chars().take(NAME_CHARS_MAX).collect();
    (!name.is_empty()).then_some(name)
}

/// Returns whether a page may load the URL as a picture: an http(s) URL or a path on the page's own
/// site, without control characters, or empty.
pub(crate) fn is_avatar(url: &str) -> bool {
    let web = ["http://", "https://"].iter().any(|scheme| url.starts_with(scheme));
    let web = web || !url.contains(':') && !url.starts_with("//");
    let one_line = !url.chars().any(char::is_control);
    url.is_empty() || (web && one_line && url.len() <= AVATAR_BYTES_MAX)
}

/// The profiles of all users.
#[derive(Clone, Debug)]
pub(crate) struct Profiles {
    database: Database,
}

impl Profiles {
    /// Connects and migrates. Creates a missing SQLite file and its directory.
    pub(crate) async fn open(url: &str) -> Result<Self, ProfileError> {
        Ok(Self { database: Database::open(url, &SCHEMA, CONNECT_TIMEOUT).await? })
    }

    /// Returns the stored profiles of `users`.
    pub(crate) async fn read(
        &self,
        users: &[UserId],
    ) -> Result<HashMap<UserId, Profile>, ProfileError> {
        const ACTION: &str = "read profiles";
        if users.is_empty() {
            return Ok(HashMap::new()); // MySQL refuses an empty IN ()
        }
        let rows = self.database.run(ACTION, || {
            let mut query = QueryBuilder::<Any>::new(
                "SELECT user_id, nick_name, avatar FROM t_user WHERE user_id IN (",
            );
            let mut ids = query.separated(", ");
            for user in users {
                ids.push_bind(user.get().cast_signed()); // the bits are kept, so no value is lost
            }
            query.push(")");
            Box::pin(async move { query.build().fetch_all(self.database.pool()).await })
        });
        let failed = |source| self.database.failed(ACTION, source);
        let mut found = HashMap::new();
        for row in rows.await? {
            let id = row.try_get::<i64, _>("user_id").map_err(failed)?;
            let nick_name = row.try_get("nick_name").map_err(failed)?;
            let avatar = row.try_get("avatar").map_err(failed)?;
            if let Ok(user) = UserId::try_from(id.cast_unsigned()) {
                found.insert(user, Profile { nick_name, avatar });
            }
        }
        Ok(found)
    }

    /// Stores a profile if it differs from the stored one.
    pub(crate) async fn store(&self, user: UserId, profile: &Profile) -> Result<(), ProfileError> {
        if self.read(&[user]).await?.get(&user) == Some(profile) {
            return Ok(()); // the usual case: a token brings the same name with every request
        }
        if self.update(user, profile).await? {
            return Ok(());
        }
        let now = now_ms().cast_signed();
        let inserted = self.database.run("insert a profile", || {
            let insert = sqlx::query(
                "INSERT INTO t_user (user_id, nick_name, avatar, create_time, update_time)
                 VALUES (?, ?, ?, ?, ?)",
            )
            .bind(user.get().cast_signed())
            .bind(profile.nick_name.as_str())
            .bind(profile.avatar.as_str())
            .bind(now)
            .bind(now);
            Box::pin(async move { insert.execute(self.database.pool()).await })
        });
        match inserted.await {
            Err(StatementError::Failed { source: sqlx::Error::Database(error), .. })
                if error.is_unique_violation() =>
            {
                self.update(user, profile).await.map(drop) // another request was faster
            }
            done => Ok(done.map(drop)?),
        }
    }

    /// Updates a user's row. Returns whether there was one.
    async fn update(&self, user: UserId, profile: &Profile) -> Result<bool, ProfileError> {
        let now = now_ms().cast_signed();
        let updated = self.database.run("update a profile", || {
            let update = sqlx::query(
                "UPDATE t_user SET nick_name = ?, avatar = ?, update_time = ? WHERE user_id = ?",
            )
            .bind(profile.nick_name.as_str())
            .bind(profile.avatar.as_str())
            .bind(now)
            .bind(user.get().cast_signed());
            Box::pin(async move { update.execute(self.database.pool()).await })
        });
        Ok(updated.await?.rows_affected() > 0)
    }

    pub(crate) async fn close(&self) {
        self.database.close().await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_picture_is_a_web_url_or_a_path() {
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
    fn a_shown_name_is_one_short_line() {
        assert_eq!(shown_name(" a\n\u{0}b "), Some("ab".into()));
        assert_eq!(shown_name(" \t"), None);
        assert_eq!(shown_name(&"名".repeat(40)).unwrap().chars().count(), NAME_CHARS_MAX);
    }

    #[tokio::test]
    async fn a_profile_is_stored_and_changed() {
        let directory = tempfile::tempdir().unwrap();
        let url = format!("sqlite://{}/made/users.db", directory.path().display());
        let profiles = Profiles::open(&url).await.unwrap();
        let big: UserId = "18446744073709551615".parse().unwrap();
        let small: UserId = "10000".parse().unwrap();
        let profile = |name: &str| Profile { nick_name: name.into(), avatar: String::new() };
        for name in ["安", "安", "Ann"] {
            profiles.store(big, &profile(name)).await.unwrap();
        }
        let found = profiles.read(&[big, small]).await.unwrap();
        assert_eq!(found, HashMap::from([(big, profile("Ann"))]));
    }
}
