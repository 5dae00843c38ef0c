-- The same tables as SQLite's, in the words of MariaDB 10.11 and MySQL 8. MySQL
-- knows no CREATE INDEX IF NOT EXISTS, so the index is part of its table, and
-- a start that died halfway through this file can run it again. No TINYINT
-- where the seed has one: sqlx's Any driver does not carry it.
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
    log_pos     BIGINT       NOT NULL,
    KEY idx_living_room_list (app_id, type, id)
) ENGINE = InnoDB DEFAULT CHARSET = utf8mb4 COLLATE = utf8mb4_unicode_ci;

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
) ENGINE = InnoDB DEFAULT CHARSET = utf8mb4 COLLATE = utf8mb4_unicode_ci;

CREATE TABLE IF NOT EXISTS t_living_position (
    id      BIGINT NOT NULL PRIMARY KEY,
    log_seq BIGINT NOT NULL
) ENGINE = InnoDB;

INSERT INTO t_living_position (id, log_seq)
SELECT * FROM (SELECT 1 AS id, 0 AS log_seq) AS fresh
WHERE NOT EXISTS (SELECT 1 FROM t_living_position);
