//! The checks of a send, in their order. Every refusal of a business frame that
//! was parsed is decided here.
//!
//! | # | check | refused with |
//! |---|---|---|
//! | 0 | rate of the connection, the user, the address (when the frame arrives) | 4008 |
//! | 1 | the sender is in the room, and it is open | 4004, 4005; 5000 if that is not known |
//! | 2 | the sender is not muted (likes: not checked from here on) | 4010 |
//! | 3 | this gateway's lease is fresh | 5000 |
//! | 4 | the partition's fan-out is not far behind | 4008 |
//! | 5 | rate of the room | 4008 |
//! | 6 | the message was not sent before | the receipt of the first one |
//! | 7 | content | 4009; 5000 if the webhook does not respond |
//!
//! The order is part of the protocol: where several checks fail, the client
//! receives the code of the first. A check that takes a token or makes a
//! request runs only when all before it passed.

use std::net::IpAddr;

use qiyu_runtime::limiter::TokenBucket;
use qiyu_schema::{AppId, ClientMsgId, MsgId, Partition, RoomId, UserId};

use super::{content::ContentObjection, request::SendRequest};
use crate::{frame::RefusalCode, rate_limit::RateLimits};

/// The further course of a request that passed its checks.
#[derive(Debug, PartialEq)]
pub(crate) enum Admission {
    /// It is appended to the log.
    Append,
    /// It is a like: counted, and not stored one by one.
    CountLikes { room: RoomId, count: u32 },
    /// It was stored before under this id.
    Duplicate(MsgId),
}

/// A request that failed a check.
#[derive(Debug, PartialEq)]
pub(crate) enum Rejection {
    Code(RefusalCode),
    /// The content is refused. The reason goes to the log.
    Content {
        reason: String,
    },
}

impl From<RefusalCode> for Rejection {
    fn from(code: RefusalCode) -> Self {
        Self::Code(code)
    }
}

impl From<ContentObjection> for Rejection {
    fn from(objection: ContentObjection) -> Self {
        match objection {
            ContentObjection::Refused { reason } => Self::Content { reason },
            ContentObjection::Unknown => Self::Code(RefusalCode::NotStored),
        }
    }
}

impl Rejection {
    /// Returns the code that the sender receives.
    pub(crate) fn code(&self) -> RefusalCode {
        match self {
            Self::Code(code) => *code,
            Self::Content { .. } => RefusalCode::ContentRefused,
        }
    }
}

/// Whether the sender's connection is in a room.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum RoomPresence {
    Inside,
    /// The connection is in the room, and the room was closed.
    InsideClosed,
    Outside,
}

/// The state that the checks read, of one connection and its gateway.
pub(crate) trait SendState {
    fn presence_in(&self, room: RoomId) -> RoomPresence;
    /// Returns whether a room that the sender is not in is open, or `None` if
    /// the bus does not answer.
    async fn is_room_open(&self, room: RoomId) -> Option<bool>;
    /// Returns whether the sender is muted in the room, or in the whole app.
    fn is_muted(&self, room: Option<RoomId>) -> bool;
    fn has_fresh_lease(&self) -> bool;
    /// Returns whether the partition takes messages: its fan-out is not far behind.
    fn partition_admits(&self, partition: Partition) -> bool;
    /// Takes one token of the room's rate, and returns whether there was one.
    fn room_admits(&self, room: RoomId) -> bool;
    async fn find_duplicate(&self, partition: Partition, id: &ClientMsgId) -> Option<MsgId>;
    async fn check_content(
        &self,
        request: &SendRequest,
        content: &str,
    ) -> Result<(), ContentObjection>;
}

/// Check 0: the rates of the connection, the user and the address. It runs when
/// a frame arrives: also a frame that cannot be parsed takes its tokens.
pub(crate) fn check_frame_rate(
    limits: &RateLimits,
    connection: &mut TokenBucket,
    sender: (AppId, UserId),
    address: IpAddr,
) -> Result<(), RefusalCode> {
    if limits.admits_frame(connection, sender, address) {
        Ok(())
    } else {
        Err(RefusalCode::TooFast)
    }
}

/// Checks 1 to 7, in their order.
pub(crate) async fn check_request(
    state: &impl SendState,
    app: AppId,
    client_msg_id: Option<&ClientMsgId>,
    request: &SendRequest,
) -> Result<Admission, Rejection> {
    let (room, partition) = (request.room(), request.partition(app));
    if let Some(room) = room {
        check_in_room(state, room).await?;
    }
    if let SendRequest::Like { room, count } = *request {
        return Ok(Admission::CountLikes { room, count });
    }
    check_not_muted(state, room)?;
    if !state.has_fresh_lease() {
        // This gateway may have been declared gone, and its members with it.
        return Err(RefusalCode::NotStored.into());
    }
    if !state.partition_admits(partition) {
        return Err(RefusalCode::TooFast.into());
    }
    if room.is_some_and(|room| !state.room_admits(room)) {
        return Err(RefusalCode::TooFast.into()); // protects the other rooms of the partition
    }
    if let Some(id) = client_msg_id
        && let Some(first) = state.find_duplicate(partition, id).await
    {
        return Ok(Admission::Duplicate(first));
    }
    if let Some(content) = request.content() {
        state.check_content(request, content).await?;
    }
    Ok(Admission::Append)
}

async fn check_in_room(state: &impl SendState, room: RoomId) -> Result<(), RefusalCode> {
    match state.presence_in(room) {
        RoomPresence::Inside => Ok(()),
        RoomPresence::InsideClosed => Err(RefusalCode::RoomNotOpen),
        RoomPresence::Outside => Err(match state.is_room_open(room).await {
            Some(true) => RefusalCode::NotInRoom,
            Some(false) => RefusalCode::RoomNotOpen,
            None => RefusalCode::NotStored,
        }),
    }
}

fn check_not_muted(state: &impl SendState, room: Option<RoomId>) -> Result<(), RefusalCode> {
    if state.is_muted(room) { Err(RefusalCode::Muted) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use super::{super::request::RoomText, *};

    /// A state in which the named checks fail, and which records the checks made.
    #[derive(Default)]
    struct FakeState {
        failing: Vec<&'static str>,
        made: RefCell<Vec<&'static str>>,
    }

    impl FakeState {
        fn passes(&self, check: &'static str) -> bool {
            self.made.borrow_mut().push(check);
            !self.failing.contains(&check)
        }
    }

    impl SendState for FakeState {
        fn presence_in(&self, _: RoomId) -> RoomPresence {
            match (self.passes("inside"), self.passes("room not closed")) {
                (true, true) => RoomPresence::Inside,
                (true, false) => RoomPresence::InsideClosed,
                (false, _) => RoomPresence::Outside,
            }
        }

        async fn is_room_open(&self, _: RoomId) -> Option<bool> {
            self.passes("bus answers").then(|| self.passes("room open"))
        }

        fn is_muted(&self, _: Option<RoomId>) -> bool {
            !self.passes("not muted")
        }

        fn has_fresh_lease(&self) -> bool {
            self.passes("lease")
        }

        fn partition_admits(&self, _: Partition) -> bool {
            self.passes("partition")
        }

        fn room_admits(&self, _: RoomId) -> bool {
            self.passes("room rate")
        }

        async fn find_duplicate(&self, _: Partition, _: &ClientMsgId) -> Option<MsgId> {
            (!self.passes("first copy")).then(first_msg_id)
        }

        async fn check_content(&self, _: &SendRequest, _: &str) -> Result<(), ContentObjection> {
            match (self.passes("content"), self.passes("webhook")) {
                (true, true) => Ok(()),
                (false, _) => Err(ContentObjection::Refused { reason: "word: x".into() }),
                (true, false) => Err(ContentObjection::Unknown),
            }
        }
    }

    fn first_msg_id() -> MsgId {
        MsgId::at(9)
    }

    fn room() -> RoomId {
        "7".parse().unwrap()
    }

    fn to_room() -> SendRequest {
        let text = RoomText { kind: 1, content: "x".into() };
        SendRequest::Room { room: room(), biz_code: 5555, text }
    }

    fn direct() -> SendRequest {
        let to = "100002".parse().unwrap();
        SendRequest::Direct { to, biz_code: 5555, content: "x".into() }
    }

    async fn check(
        request: &SendRequest,
        failing: &[&'static str],
    ) -> (Result<Admission, Rejection>, Vec<&'static str>) {
        let state = FakeState { failing: failing.to_vec(), ..FakeState::default() };
        let (app, id) = ("10001".parse().unwrap(), "a-1".parse().unwrap());
        let checked = check_request(&state, app, Some(&id), request).await;
        (checked, state.made.into_inner())
    }

    fn content_refused() -> Result<Admission, Rejection> {
        Err(Rejection::Content { reason: "word: x".into() })
    }

    fn refused(code: RefusalCode) -> Result<Admission, Rejection> {
        Err(Rejection::Code(code))
    }

    #[tokio::test]
    async fn each_failed_check_has_its_code() {
        for (failing, expected) in [
            (&[][..], Ok(Admission::Append)),
            (&["inside"], refused(RefusalCode::NotInRoom)),
            (&["inside", "room open"], refused(RefusalCode::RoomNotOpen)),
            (&["inside", "bus answers"], refused(RefusalCode::NotStored)),
            (&["room not closed"], refused(RefusalCode::RoomNotOpen)),
            (&["not muted"], refused(RefusalCode::Muted)),
            (&["lease"], refused(RefusalCode::NotStored)),
            (&["partition"], refused(RefusalCode::TooFast)),
            (&["room rate"], refused(RefusalCode::TooFast)),
            (&["first copy"], Ok(Admission::Duplicate(first_msg_id()))),
            (&["content"], content_refused()),
            (&["webhook"], refused(RefusalCode::NotStored)),
        ] {
            assert_eq!(check(&to_room(), failing).await.0, expected, "{failing:?}");
        }
    }

    #[tokio::test]
    async fn the_first_failed_check_decides_and_ends_the_checks() {
        let order = ["not muted", "lease", "partition", "room rate", "first copy", "content"];
        let codes = [
            refused(RefusalCode::Muted),
            refused(RefusalCode::NotStored),
            refused(RefusalCode::TooFast),
            refused(RefusalCode::TooFast),
            Ok(Admission::Duplicate(first_msg_id())),
            content_refused(),
        ];
        for (first, expected) in codes.into_iter().enumerate() {
            let (checked, made) = check(&to_room(), &order[first..]).await;
            assert_eq!(checked, expected, "all from {} on fail", order[first]);
            let later = order.iter().skip(first + 1).filter(|check| made.contains(check));
            assert_eq!(later.count(), 0, "{made:?} after {}", order[first]);
        }
    }

    #[tokio::test]
    async fn a_sender_outside_the_room_is_told_so_before_all_else() {
        let all = ["inside", "not muted", "lease", "partition", "room rate", "content"];
        let (checked, made) = check(&to_room(), &all).await;
        assert_eq!(checked, refused(RefusalCode::NotInRoom));
        assert!(!made.contains(&"not muted"), "{made:?}");
    }

    #[tokio::test]
    async fn a_direct_message_needs_no_room() {
        let (checked, made) = check(&direct(), &["inside", "room rate"]).await;
        assert_eq!(checked, Ok(Admission::Append));
        assert_eq!(made, ["not muted", "lease", "partition", "first copy", "content", "webhook"]);
    }

    #[tokio::test]
    async fn a_like_is_only_checked_for_its_room() {
        let like = SendRequest::Like { room: room(), count: 3 };
        let others = ["not muted", "lease", "partition", "room rate"];
        let expected = Ok(Admission::CountLikes { room: room(), count: 3 });
        assert_eq!(check(&like, &others).await.0, expected);
        assert_eq!(check(&like, &["inside"]).await.0, refused(RefusalCode::NotInRoom));
    }

    #[tokio::test]
    async fn an_integrators_message_has_no_content_to_check() {
        let to = super::super::request::Addressee::Room(room());
        let gift = SendRequest::Business { to, biz_code: 7000, data: "{}".into() };
        assert_eq!(check(&gift, &["content", "webhook"]).await.0, Ok(Admission::Append));
    }

    #[tokio::test]
    async fn a_message_without_client_msg_id_is_no_duplicate() {
        let state = FakeState { failing: vec!["first copy"], ..FakeState::default() };
        let app = "10001".parse().unwrap();
        let checked = check_request(&state, app, None, &to_room()).await;
        assert_eq!(checked, Ok(Admission::Append));
    }
}
