//! Migrations: the tables of a service are brought to the current shape at its start.

use std::time::Duration;

use sqlx::{
    AnyConnection, AssertSqlSafe, Executor as _, Row as _, SqlSafeStr,
    migrate::{MigrateError, Migration, MigrationType, Migrator},
};
use tracing::warn;

use crate::connect::SQLITE;

/// Attempts on SQLite: of two processes that migrate at once, one fails and then finds it done.
const SQLITE_ATTEMPTS_MAX: u32 = 5;
/// Pause between these attempts.
const SQLITE_RETRY_INTERVAL: Duration = Duration::from_millis(200);

/// The tables of one service.
#[derive(Clone, Copy, Debug)]
pub struct Schema {
    /// The tables in words, as in "the tables of rooms"; part of error texts.
    pub tables: &'static str,
    /// The name of the migration; stored in the migrations table, so it never changes.
    pub migration: &'static str,
    /// The table that records applied migrations. Services share a database, so each has its own.
    pub migrations_table: &'static str,
    pub sqlite: &'static str,
    pub mysql: &'static str,
}

/// Applies the migrations that are missing.
///
/// Every migration can run again from its beginning: MySQL commits each statement about tables by
/// itself, so a process that dies may leave half of them.
pub(crate) async fn run(
    schema: &Schema,
    connection: &mut AnyConnection,
) -> Result<(), MigrateError> {
    if connection.backend_name() == SQLITE {
        return run_on_sqlite(&migrator(schema, schema.sqlite), connection).await;
    }
    let migrator = migrator(schema, schema.mysql);
    // MariaDB does not know the endless wait that sqlx's own lock asks for.
    let lock = connection.fetch_one("SELECT GET_LOCK('qiyu_migrations', 60)").await?;
    if lock.try_get::<Option<i64>, _>(0)? != Some(1) {
        return Err(MigrateError::Execute(sqlx::Error::PoolTimedOut));
    }
    match migrator.run(&mut *connection).await {
        Err(MigrateError::Dirty(version)) => {
            warn!(version, tables = schema.tables, "a migration was interrupted, running it again");
            // The name is a constant of a service.
            let delete = format!("DELETE FROM {} WHERE success = FALSE", schema.migrations_table);
            connection.execute(AssertSqlSafe(delete)).await?;
            migrator.run(&mut *connection).await
        }
        done => done,
    }
}

async fn run_on_sqlite(
    migrator: &Migrator,
    connection: &mut AnyConnection,
) -> Result<(), MigrateError> {
    let mut attempt = 1;
    loop {
        match migrator.run(&mut *connection).await {
            Err(MigrateError::Execute(_) | MigrateError::ExecuteMigration(..))
                if attempt < SQLITE_ATTEMPTS_MAX =>
            {
                attempt += 1;
                tokio::time::sleep(SQLITE_RETRY_INTERVAL).await;
            }
            done => return done,
        }
    }
}

fn migrator(schema: &Schema, sql: &'static str) -> Migrator {
    let name = schema.migration.into();
    let migration = Migration::new(1, name, MigrationType::Simple, sql.into_sql_str(), false);
    let mut migrator = Migrator::with_migrations(vec![migration]);
    migrator.dangerous_set_table_name(schema.migrations_table);
    migrator.set_locking(false);
    migrator
}
