//! Reads the tables about rooms as they are, to compare them with the log. Creates, migrates and
//! writes nothing.

use qiyu_database::{OpenError, StatementError};
use qiyu_runtime::url::redact_url;
use qiyu_schema::{AppId, MsgId, RoomId, UserId};
use sqlx::{AnyPool, any::AnyPoolOptions, any::AnyRow};

use crate::store::{RoomColumns, RoomRow, StoreError, TABLES};

/// The content of both tables.
#[derive(Clone, Debug, Default)]
pub struct RoomTables {
    pub open: Vec<OpenRow>,
    pub records: Vec<RecordRow>,
    /// Rows of either table with invalid values.
    pub unreadable: Vec<UnreadableRow>,
}

/// One of the two tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RoomTable {
    /// `t_living_room`.
    Open,
    /// `t_living_room_record`.
    Records,
}

/// A row with invalid values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UnreadableRow {
    pub table: RoomTable,
    /// The room's id as it is stored.
    pub id: i64,
}

impl std::fmt::Display for UnreadableRow {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let table = match self.table {
            RoomTable::Open => "t_living_room",
            RoomTable::Records => "t_living_room_record",
        };
        write!(f, "room {} in {table}", self.id)
    }
}

/// A row of `t_living_room`.
#[derive(Clone, Debug, PartialEq)]
pub struct OpenRow {
    pub app: AppId,
    pub room: RoomId,
    pub anchor: UserId,
    /// 1 ordinary, 2 pk.
    pub room_type: u8,
    pub name: String,
    /// The URL of the cover image; may be empty.
    pub cover: String,
    /// The position of the `opened` event in the log.
    pub opened: MsgId,
}

/// A row of `t_living_room_record`.
#[derive(Clone, Debug, PartialEq)]
pub struct RecordRow {
    pub app: AppId,
    pub room: RoomId,
    pub anchor: UserId,
    /// 1 ordinary, 2 pk.
    pub room_type: u8,
    pub name: String,
    /// The URL of the cover image; may be empty.
    pub cover: String,
    /// The position of the `closed` event in the log.
    pub closed: MsgId,
    /// Milliseconds since 1970.
    pub closed_at_ms: u64,
}

/// Reads the tables of the database at `url`.
///
/// # Errors
///
/// [`StoreError`]: the database or its tables do not exist.
pub async fn read_tables(url: &str) -> Result<RoomTables, StoreError> {
    sqlx::any::install_default_drivers();
    let pool = AnyPoolOptions::new()
        .max_connections(1)
        .connect(&url.replace("mode=rwc", "mode=ro")) // a reader creates no file
        .await
        .map_err(|source| OpenError::Connect { url: redact_url(url), source })?;
    let tables = read(&pool).await;
    pool.close().await;
    tables
}

async fn read(pool: &AnyPool) -> Result<RoomTables, StoreError> {
    let failed =
        |source| StatementError::Failed { action: "read all rows", tables: TABLES, source };
    let open = sqlx::query(
        "SELECT id, app_id, anchor_id, type, room_name, covert_img, log_pos FROM t_living_room",
    );
    let open = open.fetch_all(pool).await.map_err(failed)?;
    let records = sqlx::query(
        "SELECT room_id AS id, app_id, anchor_id, type, room_name, covert_img, end_time, log_pos
         FROM t_living_room_record",
    );
    let records = records.fetch_all(pool).await.map_err(failed)?;
    let mut tables = RoomTables::default();
    // One invalid row must not hide the differences in the others.
    let unreadable = |row: &AnyRow, table| {
        let id = RoomRow(row).id()?;
        Ok::<_, StoreError>(UnreadableRow { table, id })
    };
    for row in &open {
        match open_row(RoomRow(row)) {
            Ok(row) => tables.open.push(row),
            Err(_) => tables.unreadable.push(unreadable(row, RoomTable::Open)?),
        }
    }
    for row in &records {
        match record_row(RoomRow(row)) {
            Ok(row) => tables.records.push(row),
            Err(_) => tables.unreadable.push(unreadable(row, RoomTable::Records)?),
        }
    }
    Ok(tables)
}

fn open_row(row: RoomRow<'_>) -> Result<OpenRow, StoreError> {
    let RoomColumns { app, room, anchor, room_type, name, cover } = row.columns()?;
    let opened = row.valid("log_pos")?;
    Ok(OpenRow { app, room, anchor, room_type, name, cover, opened })
}

fn record_row(row: RoomRow<'_>) -> Result<RecordRow, StoreError> {
    let RoomColumns { app, room, anchor, room_type, name, cover } = row.columns()?;
    let (closed, closed_at_ms) = (row.valid("log_pos")?, row.number("end_time")?);
    Ok(RecordRow { app, room, anchor, room_type, name, cover, closed, closed_at_ms })
}
