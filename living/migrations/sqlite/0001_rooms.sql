-- The seed's columns (its spelling kept), plus app_id and the position in the
-- log the row was written from. Times are ms since 1970 in BIGINT: sqlx's Any
-- driver carries neither SQLite's nor MySQL's DATETIME, and an integer means
-- the same in both, without a time zone.
CREATE TABLE IF NOT EXISTS t_living_room (
    id          BIGINT       NOT NULL PRIMARY KEY,
    app_id      BIGINT       NOT NULL,
    anchor_id   BIGINT       NULL,
    type        SMALLINT     NOT NULL DEFAULT 0,
    status      SMALLINT     NOT NULL DEFAULT 0,
    room_name   VARCHAR(60)  NOT NULL DEFAULT 'EMPTY_STR',
    covert_img  VARCHAR(255) NULL,
    watch_num   BIGINT       NOT NULL DEFAULT 0,
    good_num    BIGINT       NOT NULL DEFAULT 0,
    start_time  BIGINT       NOT NULL DEFAULT 0,
    update_time BIGINT       NOT NULL DEFAULT 0,
    log_pos     BIGINT       NOT NULL
);

-- What the list is read by: one type of one app, newest first.
CREATE INDEX IF NOT EXISTS idx_living_room_list ON t_living_room (app_id, type, id);

CREATE TABLE IF NOT EXISTS t_living_room_record (
    id          BIGINT       NOT NULL PRIMARY KEY,
    room_id     BIGINT       NOT NULL UNIQUE,
    app_id      BIGINT       NOT NULL,
    anchor_id   BIGINT       NULL,
    type        SMALLINT     NOT NULL DEFAULT 0,
    status      SMALLINT     NOT NULL DEFAULT 0,
    room_name   VARCHAR(60)  NOT NULL DEFAULT 'EMPTY_STR',
    covert_img  VARCHAR(255) NULL,
    watch_num   BIGINT       NOT NULL DEFAULT 0,
    good_num    BIGINT       NOT NULL DEFAULT 0,
    start_time  BIGINT       NOT NULL DEFAULT 0,
    end_time    BIGINT       NULL,
    update_time BIGINT       NOT NULL DEFAULT 0,
    log_pos     BIGINT       NOT NULL
);

-- One row: the last entry of the log whose effects are all in these tables.
CREATE TABLE IF NOT EXISTS t_living_position (
    id      BIGINT NOT NULL PRIMARY KEY,
    log_seq BIGINT NOT NULL
);

INSERT INTO t_living_position (id, log_seq)
SELECT * FROM (SELECT 1 AS id, 0 AS log_seq) AS fresh
WHERE NOT EXISTS (SELECT 1 FROM t_living_position);
