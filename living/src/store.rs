//! The tables about rooms: a projection of the log that can be queried with SQL.
//!
//! One text of each statement serves SQLite, MariaDB and MySQL.

mod error;
mod rows;
mod statements;
#[cfg(test)]
mod tests;

use std::time::Duration;

use qiyu_database::{Database, Schema};
use qiyu_schema::{AppId, RoomId};
use sqlx::Row as _;

use crate::room::{Room, RoomClosing};

pub use error::StoreError;
pub(crate) use rows::{RoomColumns, RoomRow, TABLES};

use rows::{open_room, signed, unsigned};

/// How long a statement waits for a connection, a new one included.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);

const SCHEMA: Schema = Schema {
    tables: TABLES,
    migration: "rooms",
    migrations_table: "_sqlx_migrations_living",
    sqlite: include_str!("../migrations/sqlite/0001_rooms.sql"),
    mysql: include_str!("../migrations/mysql/0001_rooms.sql"),
};

/// A SELECT of open rooms with the given condition and order.
macro_rules! select_open_rooms {
    ($condition:literal) => {
        concat!(
            "SELECT id, app_id, anchor_id, type, room_name, covert_img, good_num, start_time,
                 log_pos
             FROM t_living_room ",
            $condition
        )
    };
}

/// The tables about rooms.
#[derive(Clone, Debug)]
pub(crate) struct Store {
    database: Database,
}

impl Store {
    /// Connects and migrates. Creates a missing SQLite file and its directory.
    pub(crate) async fn open(url: &str) -> Result<Self, StoreError> {
        Ok(Self { database: Database::open(url, &SCHEMA, CONNECT_TIMEOUT).await? })
    }

    /// Inserts a room's row, unless the room has a row or is closed.
    pub(crate) async fn insert(&self, room: &Room) -> Result<(), StoreError> {
        let inserted = self.database.run("insert a room", move || {
            Box::pin(async move {
                let mut connection = self.database.pool().acquire().await?;
                statements::insert(&mut connection, room).await
            })
        });
        Ok(inserted.await?)
    }

    /// Moves a closed room's row to the records, in one transaction. Returns false when the room
    /// has neither a row nor a record.
    pub(crate) async fn archive(&self, closing: &RoomClosing) -> Result<bool, StoreError> {
        let archived = self.database.run("close a room", move || {
            Box::pin(async move {
                let mut transaction = self.database.pool().begin().await?;
                let done = statements::archive(&mut transaction, closing).await?;
                transaction.commit().await?;
                Ok(done)
            })
        });
        Ok(archived.await?)
    }

    /// Makes the room open in the tables, regardless of their content.
    pub(crate) async fn restore_open(&self, room: &Room) -> Result<(), StoreError> {
        let restored = self.database.run("restore an open room", move || {
            Box::pin(async move {
                let mut transaction = self.database.pool().begin().await?;
                statements::clear(&mut transaction, room.app, room.room).await?;
                statements::insert(&mut transaction, room).await?;
                transaction.commit().await
            })
        });
        Ok(restored.await?)
    }

    /// Makes the room closed in the tables, regardless of their content. No reader sees it open
    /// meanwhile.
    pub(crate) async fn restore_closed(
        &self,
        room: &Room,
        closing: &RoomClosing,
    ) -> Result<(), StoreError> {
        let restored = self.database.run("restore a closed room", move || {
            Box::pin(async move {
                let mut transaction = self.database.pool().begin().await?;
                statements::clear(&mut transaction, room.app, room.room).await?;
                statements::insert(&mut transaction, room).await?;
                statements::archive(&mut transaction, closing).await?;
                transaction.commit().await
            })
        });
        Ok(restored.await?)
    }

    /// Moves the row of a room that is over to the records, without an end time.
    pub(crate) async fn retire(&self, app: AppId, room: RoomId) -> Result<(), StoreError> {
        let retired = self.database.run("retire a room", move || {
            Box::pin(async move {
                let mut transaction = self.database.pool().begin().await?;
                statements::retire(&mut transaction, app, room).await?;
                transaction.commit().await
            })
        });
        Ok(retired.await?)
    }

    /// Returns an open room of any app. `None`: unknown or closed.
    pub(crate) async fn find(&self, room: RoomId) -> Result<Option<Room>, StoreError> {
        const SQL: &str = select_open_rooms!("WHERE id = ?");
        let row = self.database.run("find a room", move || {
            Box::pin(async move {
                let query = sqlx::query(SQL).bind(signed(room.get()));
                query.fetch_optional(self.database.pool()).await
            })
        });
        row.await?.as_ref().map(open_room).transpose()
    }

    /// Returns the newest open rooms of one type, newest first. Ids only rise, so they order rooms
    /// by age.
    pub(crate) async fn newest(
        &self,
        app: AppId,
        room_type: u8,
        limit: u32,
    ) -> Result<Vec<Room>, StoreError> {
        const SQL: &str =
            select_open_rooms!("WHERE app_id = ? AND type = ? ORDER BY id DESC LIMIT ?");
        let rows = self.database.run("list rooms", move || {
            Box::pin(async move {
                let query = sqlx::query(SQL).bind(i64::from(app.get())).bind(i64::from(room_type));
                query.bind(i64::from(limit)).fetch_all(self.database.pool()).await
            })
        });
        rows.await?.iter().map(open_room).collect()
    }

    /// Returns up to 500 rows of open rooms with ids above `after`, in the order of their ids. An
    /// empty result is the end.
    pub(crate) async fn rows_after(&self, after: Option<RoomId>) -> Result<Vec<Room>, StoreError> {
        let after = after.map_or(0, |room| signed(room.get()));
        const SQL: &str = select_open_rooms!("WHERE id > ? ORDER BY id LIMIT 500");
        let rows = self.database.run("read the rooms", move || {
            let query = sqlx::query(SQL).bind(after);
            Box::pin(async move { query.fetch_all(self.database.pool()).await })
        });
        rows.await?.iter().map(open_room).collect()
    }

    /// Returns the sequence of the last log entry whose effects are all in the tables.
    pub(crate) async fn position(&self) -> Result<u64, StoreError> {
        let position = self.database.run("read the position", move || {
            Box::pin(async move {
                let row = sqlx::query("SELECT log_seq FROM t_living_position WHERE id = 1");
                let row = row.fetch_one(self.database.pool()).await?;
                row.try_get::<i64, _>(0).map(unsigned)
            })
        });
        Ok(position.await?)
    }

    /// Moves the position forward to `seq`, never back.
    pub(crate) async fn advance(&self, seq: u64) -> Result<(), StoreError> {
        let moved = self.database.run("move the position", move || {
            Box::pin(async move {
                sqlx::query("UPDATE t_living_position SET log_seq = ? WHERE id = 1 AND log_seq < ?")
                    .bind(signed(seq))
                    .bind(signed(seq))
                    .execute(self.database.pool())
                    .await
                    .map(drop)
            })
        });
        Ok(moved.await?)
    }

    /// Sets the position to `seq`, also backwards.
    pub(crate) async fn set_position(&self, seq: u64) -> Result<(), StoreError> {
        let set = self.database.run("set the position", move || {
            Box::pin(async move {
                let mut transaction = self.database.pool().begin().await?;
                statements::set_position(&mut transaction, seq).await?;
                transaction.commit().await
            })
        });
        Ok(set.await?)
    }

    pub(crate) async fn close(&self) {
        self.database.close().await;
    }
}
