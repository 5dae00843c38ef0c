//! The texts that callers of the commands see: Chinese for the routes of rooms, English for
//! sanctions, as the contract has them.

use qiyu_schema::UserId;

pub(crate) const SYSTEM_ERROR: &str = "系统异常";
pub(crate) const UNKNOWN_APP: &str = "应用不存在";
pub(crate) const ROOM_TYPE_MISSING: &str = "需要给定直播间类型";
pub(crate) const NAME_TOO_LONG: &str = "直播间名称过长";
pub(crate) const COVER_TOO_LONG: &str = "封面地址过长";
pub(crate) const NOT_CLOSED: &str = "关播异常，请稍后再试";
pub(crate) const BAD_PAGE: &str = "分页查询参数错误";

pub(crate) const UNKNOWN_SANCTION: &str = "this measure is unknown here";
pub(crate) const REASON_TOO_LONG: &str = "the reason is longer than 200 characters";
pub(crate) const ENDS_BEFORE_START: &str = "the measure would end before it begins";
pub(crate) const AGAINST_ONESELF: &str = "nobody takes measures against themselves";
pub(crate) const NOT_LIFTABLE: &str = "only a mute or a ban can be lifted";
pub(crate) const APP_NOT_SERVED: &str = "this app is not served here";
pub(crate) const ROOM_ID_MISSING: &str = "roomId is missing";
pub(crate) const ROOM_NOT_OPEN: &str = "the room is not open";
pub(crate) const NOT_THE_ANCHOR: &str = "only the room's anchor may do this";

/// Returns the name of a room that was opened without one.
pub(crate) fn default_room_name(anchor: UserId) -> String {
    format!("主播-{anchor}的直播间")
}
