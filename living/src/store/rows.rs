//! Reading rows of `t_living_room` and `t_living_room_record`.

use qiyu_database::StatementError;
use qiyu_schema::{AppId, RoomId, UserId};
use sqlx::{Row, any::AnyRow};

use super::error::StoreError;
use crate::room::Room;

/// The tables of this crate, in words.
pub(crate) const TABLES: &str = "the tables of rooms";

/// The columns that both tables have, as every reader of them needs them.
pub(crate) struct RoomColumns {
    pub(crate) app: AppId,
    pub(crate) room: RoomId,
    pub(crate) anchor: UserId,
    pub(crate) room_type: u8,
    pub(crate) name: String,
    pub(crate) cover: String,
}

/// A row that is being read. Its room's id is in the column `id`.
#[derive(Clone, Copy)]
pub(crate) struct RoomRow<'a>(pub(crate) &'a AnyRow);

impl RoomRow<'_> {
    /// Returns the room's id as it is stored.
    pub(crate) fn id(self) -> Result<i64, StoreError> {
        self.0.try_get("id").map_err(unreadable)
    }

    /// Reads the columns that both tables have.
    pub(crate) fn columns(self) -> Result<RoomColumns, StoreError> {
        Ok(RoomColumns {
            app: self.valid("app_id")?,
            room: self.valid("id")?,
            anchor: self.valid("anchor_id")?,
            room_type: self.valid("type")?,
            name: self.text("room_name")?,
            cover: self.text("covert_img")?,
        })
    }

    /// Reads a number that must be valid as a `T`, such as an id.
    pub(crate) fn valid<T: TryFrom<u64>>(self, column: &str) -> Result<T, StoreError> {
        let id = self.id()?;
        self.number(column)?.try_into().map_err(|_| StoreError::Row { id })
    }

    /// Reads a number.
    pub(crate) fn number(self, column: &str) -> Result<u64, StoreError> {
        self.0.try_get::<i64, _>(column).map(unsigned).map_err(unreadable)
    }

    /// Reads a text. NULL is read as empty.
    fn text(self, column: &str) -> Result<String, StoreError> {
        Ok(self.0.try_get::<Option<String>, _>(column).map_err(unreadable)?.unwrap_or_default())
    }
}

/// Reads a row of an open room.
pub(crate) fn open_room(row: &AnyRow) -> Result<Room, StoreError> {
    let row = RoomRow(row);
    let RoomColumns { app, room, anchor, room_type, name, cover } = row.columns()?;
    Ok(Room {
        app,
        room,
        anchor,
        room_type,
        name,
        cover,
        good_num: row.number("good_num")?,
        opened: row.valid("log_pos")?,
        opened_at_ms: row.number("start_time")?,
    })
}

fn unreadable(source: sqlx::Error) -> StoreError {
    StatementError::Failed { action: "read a row", tables: TABLES, source }.into()
}

/// Converts a number for SQL, which has no unsigned type on every database. The bits are kept, so
/// no value is lost.
pub(crate) fn signed(number: u64) -> i64 {
    number.cast_signed()
}

/// Reverses [`signed`].
pub(crate) fn unsigned(number: i64) -> u64 {
    number.cast_unsigned()
}
