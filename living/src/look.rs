//! The tables about rooms as they are, for whoever compares them with the log.
//! Nothing is made, migrated or written.

use qiyu_nats::bus;
use qiyu_schema::{AppId, MsgId, RoomId, UserId};
use sqlx::{AnyPool, Row, any::AnyPoolOptions, any::AnyRow};

use crate::store::StoreError;

/// Everything the tables hold.
#[derive(Clone, Debug, Default)]
pub struct Tables {
    /// Rows of open rooms.
    pub open: Vec<OpenRow>,
    /// Records of closed ones.
    pub records: Vec<RecordRow>,
    /// Rows of either that make no sense.
    pub senseless: Vec<Senseless>,
}

/// One of the two tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Table {
    /// `t_living_room`.
    Open,
    /// `t_living_room_record`.
    Records,
}

/// A row that makes no sense.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Senseless {
    /// Where.
    pub table: Table,
    /// The room's id, as it stands there.
    pub id: i64,
}

impl std::fmt::Display for Senseless {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let table = match self.table {
            Table::Open => "t_living_room",
            Table::Records => "t_living_room_record",
        };
        write!(f, "room {} in {table}", self.id)
    }
}

/// A row of `t_living_room`.
#[derive(Clone, Debug, PartialEq)]
pub struct OpenRow {
    /// Where.
    pub app: AppId,
    /// Its id.
    pub room: RoomId,
    /// Whose.
    pub anchor: UserId,
    /// 1 ordinary, 2 pk.
    pub room_type: u8,
    /// As listed.
    pub name: String,
    /// Cover image URL; may be empty.
    pub cover: String,
    /// The opening's place in the log.
    pub opened: MsgId,
}

/// A row of `t_living_room_record`.
#[derive(Clone, Debug, PartialEq)]
pub struct RecordRow {
    /// Where.
    pub app: AppId,
    /// Which room.
    pub room: RoomId,
    /// Whose it was.
    pub anchor: UserId,
    /// 1 ordinary, 2 pk.
    pub room_type: u8,
    /// As it was listed.
    pub name: String,
    /// Cover image URL; may be empty.
    pub cover: String,
    /// The closing's place in the log.
    pub closed: MsgId,
    /// When it closed, ms since 1970.
    pub closed_at_ms: u64,
}

/// Reads the tables of the database at `url`.
///
/// # Errors
///
/// [`StoreError`]: there is no such database, or it has no such tables.
pub async fn look(url: &str) -> Result<Tables, StoreError> {
    sqlx::any::install_default_drivers();
    let pool = AnyPoolOptions::new()
        .max_connections(1)
        .connect(&url.replace("mode=rwc", "mode=ro")) // looking makes no file
        .await
        .map_err(|source| StoreError::Connect { url: bus::shown(url), source })?;
    let tables = read(&pool).await;
    pool.close().await;
    tables
}

async fn read(pool: &AnyPool) -> Result<Tables, StoreError> {
    let failed = |source| StoreError::Statement { doing: "read everything", source };
    let open = sqlx::query(
        "SELECT id, app_id, anchor_id, type, room_name, covert_img, log_pos FROM t_living_room",
    );
    let open = open.fetch_all(pool).await.map_err(failed)?;
    let records = sqlx::query(
        "SELECT room_id AS id, app_id, anchor_id, type, room_name, covert_img, end_time, log_pos
         FROM t_living_room_record",
    );
    let records = records.fetch_all(pool).await.map_err(failed)?;
    let mut tables = Tables::default();
    // One row that makes no sense must not hide what is wrong with the others.
    let senseless = |row: &AnyRow, table| {
        let id = number(row, "id")?.cast_signed();
        Ok::<_, StoreError>(Senseless { table, id })
    };
    for row in &open {
        match open_row(row) {
            Ok(row) => tables.open.push(row),
            Err(_) => tables.senseless.push(senseless(row, Table::Open)?),
        }
    }
    for row in &records {
        match record_row(row) {
            Ok(row) => tables.records.push(row),
            Err(_) => tables.senseless.push(senseless(row, Table::Records)?),
        }
    }
    Ok(tables)
}

fn open_row(row: &AnyRow) -> Result<OpenRow, StoreError> {
    let (id, nonsense) = (number(row, "id")?, nonsense(row)?);
    Ok(OpenRow {
        app: number(row, "app_id")?.try_into().map_err(|_| nonsense())?,
        room: id.try_into().map_err(|_| nonsense())?,
        anchor: number(row, "anchor_id")?.try_into().map_err(|_| nonsense())?,
        room_type: number(row, "type")?.try_into().map_err(|_| nonsense())?,
        name: text(row, "room_name")?,
        cover: text(row, "covert_img")?,
        opened: number(row, "log_pos")?.try_into().map_err(|_| nonsense())?,
    })
}

fn record_row(row: &AnyRow) -> Result<RecordRow, StoreError> {
    let (id, nonsense) = (number(row, "id")?, nonsense(row)?);
    Ok(RecordRow {
        app: number(row, "app_id")?.try_into().map_err(|_| nonsense())?,
        room: id.try_into().map_err(|_| nonsense())?,
        anchor: number(row, "anchor_id")?.try_into().map_err(|_| nonsense())?,
        room_type: number(row, "type")?.try_into().map_err(|_| nonsense())?,
        name: text(row, "room_name")?,
        cover: text(row, "covert_img")?,
        closed: number(row, "log_pos")?.try_into().map_err(|_| nonsense())?,
        closed_at_ms: number(row, "end_time")?,
    })
}

fn number(row: &AnyRow, name: &str) -> Result<u64, StoreError> {
    let column = |source| StoreError::Statement { doing: "read a row", source };
    row.try_get::<i64, _>(name).map(i64::cast_unsigned).map_err(column)
}

/// Nothing is as good as empty.
fn text(row: &AnyRow, name: &str) -> Result<String, StoreError> {
    let column = |source| StoreError::Statement { doing: "read a row", source };
    Ok(row.try_get::<Option<String>, _>(name).map_err(column)?.unwrap_or_default())
}

fn nonsense(row: &AnyRow) -> Result<impl Fn() -> StoreError + use<>, StoreError> {
    let id = number(row, "id")?.cast_signed();
    Ok(move || StoreError::Row { id })
}
