-- The same table as SQLite's, in the words of MariaDB 10.11 and MySQL 8.
CREATE TABLE IF NOT EXISTS t_user (
    user_id     BIGINT       NOT NULL PRIMARY KEY,
    nick_name   VARCHAR(35)  NOT NULL,
    avatar      VARCHAR(255) NOT NULL,
    create_time BIGINT       NOT NULL,
    update_time BIGINT       NOT NULL
) ENGINE = InnoDB DEFAULT CHARSET = utf8mb4 COLLATE = utf8mb4_unicode_ci;
