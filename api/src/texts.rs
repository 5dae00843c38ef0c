//! The texts that callers see: Chinese on the routes for users, English on the routes for
//! integrators, as the contract has them.

use qiyu_schema::UserId;

pub(crate) const SUCCESS: &str = "success";
pub(crate) const NOT_LOGGED_IN: &str = "未登录";
pub(crate) const FORBIDDEN: &str = "没有权限";
pub(crate) const RATE_LIMITED: &str = "请求过于频繁";
pub(crate) const SYSTEM_ERROR: &str = "系统异常";
pub(crate) const UNKNOWN_PATH: &str = "接口不存在";
pub(crate) const WRONG_METHOD: &str = "请求方式不支持";
pub(crate) const CROSS_SITE: &str = "不允许跨站请求";

pub(crate) const MALFORMED: &str = "参数格式错误";
pub(crate) const BAD_PAGE: &str = "分页查询参数错误";
pub(crate) const ROOM_ID_MISSING: &str = "需要给定直播间id";
pub(crate) const ROOM_TYPE_MISSING: &str = "需要给定直播间类型";
pub(crate) const USER_ID_MISSING: &str = "需要给定用户id";
pub(crate) const BAD_USER_ID: &str = "用户id不正确";
pub(crate) const NAME_TOO_LONG: &str = "昵称过长";
pub(crate) const BAD_AVATAR: &str = "头像地址不正确";
pub(crate) const BAD_VIP: &str = "vip只能是true或false";
pub(crate) const BAD_COVER: &str = "封面地址不正确";

pub(crate) const LOGIN_OFF: &str = "未开放登录";
pub(crate) const NO_GATEWAY: &str = "暂无可用的IM服务器";
pub(crate) const ROOM_NOT_CLOSED: &str = "关播异常，请稍后再试";
pub(crate) const UNKNOWN_ROOM: &str = "直播间不存在";

/// Returns the name of a user that has given none.
pub(crate) fn default_nick_name(user: UserId) -> String {
    format!("用户-{user}")
}

/// Returns the name of a new guest.
pub(crate) fn guest_name(number: u32) -> String {
    format!("游客-{number:04}")
}

/// The texts of the routes for integrators.
pub(crate) mod server {
    pub(crate) const NO_API_KEY: &str = "no API key is set here";
    pub(crate) const WRONG_API_KEY: &str = "the API key is wrong or missing";
    pub(crate) const BODY_TOO_LONG: &str = "the body is longer than 1 MiB";
    pub(crate) const APP_NOT_SERVED: &str = "this app is not served here (QIYU_APPS)";
    pub(crate) const BAD_LIMIT: &str = "limit is 1 to 1000";
    pub(crate) const ROOM_ID_MISSING: &str = "roomId is missing";
    pub(crate) const ROOM_NOT_OPEN: &str = "the room is not open";
    pub(crate) const MEMBERS_UNAVAILABLE: &str = "nobody can tell at the moment";
    pub(crate) const BAD_USERS: &str = "give a userId, or userIds of 1 to 1000 users";
    pub(crate) const SECONDS_AND_UNTIL: &str = "give either seconds or until";
    pub(crate) const NO_SECONDS: &str = "seconds is at least 1";
    pub(crate) const BAD_AVATAR: &str = "avatar is neither an http(s) URL nor a path";
    pub(crate) const BATCH_TOO_LONG: &str = "a batch holds at most 100 messages";
    pub(crate) const RESERVED_BIZ_CODE: &str = "bizCodes 5600 to 5699 are the system's own";
    pub(crate) const ROOM_AND_USER: &str = "give either roomId or userId";
    pub(crate) const DATA_AND_CONTENT: &str = "give either data or content";
    pub(crate) const DATA_TOO_LONG: &str = "data is longer than 131072 bytes";
    pub(crate) const FAR_BEHIND: &str = "deliveries are far behind";
    pub(crate) const NOT_STORED: &str = "not stored in time";
    pub(crate) const NOT_STORED_ROOMS: &str = "not stored: the rooms do not answer";
    pub(crate) const REFUSED_BY_LOG: &str = "the log does not take this message";
}
