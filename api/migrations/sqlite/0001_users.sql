-- The seed's profile, as far as it is shown. Times are ms since 1970 in BIGINT:
-- sqlx's Any driver carries neither SQLite's nor MySQL's DATETIME.
CREATE TABLE IF NOT EXISTS t_user (
    user_id     BIGINT       NOT NULL PRIMARY KEY,
    nick_name   VARCHAR(35)  NOT NULL,
    avatar      VARCHAR(255) NOT NULL,
    create_time BIGINT       NOT NULL,
    update_time BIGINT       NOT NULL
);
