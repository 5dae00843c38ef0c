//! The statements that write rows of rooms, on a connection or in a transaction.
//!
//! Every statement is idempotent and carries its position in the log. So any number of processes
//! may apply the same event in any order: a record ends a room for ever, also for a late opening.

use qiyu_schema::{AppId, RoomId};
use sqlx::AnyConnection;

use super::rows::signed;
use crate::room::{Room, RoomClosing};

/// Inserts a room's row, unless the room has a row or a record.
///
/// It selects from a table of one row, because MySQL wants a FROM before a WHERE. It is one
/// statement, so no close can slip between the check and the write.
pub(super) async fn insert(connection: &mut AnyConnection, room: &Room) -> Result<(), sqlx::Error> {
    let id = signed(room.room.get());
    let inserted = sqlx::query(
        "INSERT INTO t_living_room (id, app_id, anchor_id, type, status, room_name, covert_img,
             watch_num, good_num, start_time, update_time, log_pos)
         SELECT ?, ?, ?, ?, 1, ?, ?, 0, 0, ?, ?, ? FROM (SELECT 1 AS one) AS fresh
         WHERE NOT EXISTS (SELECT 1 FROM t_living_room_record WHERE room_id = ?)
           AND NOT EXISTS (SELECT 1 FROM t_living_room old WHERE old.id = ?)",
    )
    .bind(id)
    .bind(i64::from(room.app.get()))
    .bind(signed(room.anchor.get()))
    .bind(i64::from(room.room_type))
    .bind(room.name.as_str())
    .bind(room.cover.as_str())
    .bind(signed(room.opened_at_ms))
    .bind(signed(room.opened_at_ms))
    .bind(signed(room.opened.get()))
    .bind(id)
    .bind(id)
    .execute(&mut *connection)
    .await;
    ignore_duplicate(inserted.map(drop))
}

/// Moves a room's row to the records. Returns false when the room has neither row nor record.
pub(super) async fn archive(
    connection: &mut AnyConnection,
    closing: &RoomClosing,
) -> Result<bool, sqlx::Error> {
    let (app, room) = (i64::from(closing.app.get()), signed(closing.room.get()));
    // A write comes first: of several processes that apply one closing, the others wait here.
    // (A transaction that began by reading cannot wait for SQLite's write lock.)
    let marked = sqlx::query(
        "UPDATE t_living_room SET status = 0, watch_num = COALESCE(?, watch_num),
             good_num = COALESCE(?, good_num), update_time = ?
         WHERE id = ? AND app_id = ?",
    )
    .bind(closing.peak.map(signed))
    .bind(closing.good_num.map(signed))
    .bind(signed(closing.closed_at_ms))
    .bind(room)
    .bind(app)
    .execute(&mut *connection)
    .await?;
    if marked.rows_affected() > 0 {
        let moved = sqlx::query(
            "INSERT INTO t_living_room_record (id, room_id, app_id, anchor_id, type, status,
                 room_name, covert_img, watch_num, good_num, start_time, end_time, update_time,
                 log_pos)
             SELECT id, id, app_id, anchor_id, type, 0, room_name, covert_img, watch_num, good_num,
                 start_time, ?, ?, ?
             FROM t_living_room WHERE id = ? AND app_id = ?
               AND NOT EXISTS (SELECT 1 FROM t_living_room_record old WHERE old.room_id = ?)",
        )
        .bind(signed(closing.closed_at_ms))
        .bind(signed(closing.closed_at_ms))
        .bind(signed(closing.closed.get()))
        .bind(room)
        .bind(app)
        .bind(room)
        .execute(&mut *connection)
        .await;
        ignore_duplicate(moved.map(drop))?;
        delete_row(connection, app, room).await?;
        return Ok(true);
    }
    let record = sqlx::query("SELECT id FROM t_living_room_record WHERE room_id = ?");
    Ok(record.bind(room).fetch_optional(&mut *connection).await?.is_some())
}

/// Moves a room's row to the records without an end time, because no event gives it.
pub(super) async fn retire(
    connection: &mut AnyConnection,
    app: AppId,
    room: RoomId,
) -> Result<(), sqlx::Error> {
    let (app, room) = (i64::from(app.get()), signed(room.get()));
    sqlx::query("UPDATE t_living_room SET status = 0 WHERE id = ? AND app_id = ?")
        .bind(room)
        .bind(app)
        .execute(&mut *connection)
        .await?;
    let moved = sqlx::query(
        "INSERT INTO t_living_room_record (id, room_id, app_id, anchor_id, type, status,
             room_name, covert_img, watch_num, good_num, start_time, update_time, log_pos)
         SELECT id, id, app_id, anchor_id, type, 0, room_name, covert_img, watch_num,
             good_num, start_time, update_time, log_pos
         FROM t_living_room WHERE id = ? AND app_id = ?
           AND NOT EXISTS (SELECT 1 FROM t_living_room_record old WHERE old.room_id = ?)",
    );
    moved.bind(room).bind(app).bind(room).execute(&mut *connection).await?;
    delete_row(connection, app, room).await
}

/// Deletes a room's row and its record.
pub(super) async fn clear(
    connection: &mut AnyConnection,
    app: AppId,
    room: RoomId,
) -> Result<(), sqlx::Error> {
    let (app, room) = (i64::from(app.get()), signed(room.get()));
    delete_row(connection, app, room).await?;
    // In every app: a room's id is used once in all of them.
    let delete = sqlx::query("DELETE FROM t_living_room_record WHERE room_id = ?");
    delete.bind(room).execute(&mut *connection).await.map(drop)
}

/// Sets the position in the log, also backwards.
pub(super) async fn set_position(
    connection: &mut AnyConnection,
    seq: u64,
) -> Result<(), sqlx::Error> {
    sqlx::query("DELETE FROM t_living_position").execute(&mut *connection).await?;
    sqlx::query("INSERT INTO t_living_position (id, log_seq) VALUES (1, ?)")
        .bind(signed(seq))
        .execute(&mut *connection)
        .await
        .map(drop)
}

async fn delete_row(
    connection: &mut AnyConnection,
    app: i64,
    room: i64,
) -> Result<(), sqlx::Error> {
    let delete = sqlx::query("DELETE FROM t_living_room WHERE id = ? AND app_id = ?");
    delete.bind(room).bind(app).execute(&mut *connection).await.map(drop)
}

/// Takes a violated unique key as success: another process has applied the same event.
fn ignore_duplicate(done: Result<(), sqlx::Error>) -> Result<(), sqlx::Error> {
    match done {
        Err(sqlx::Error::Database(error)) if error.is_unique_violation() => Ok(()),
        done => done,
    }
}
