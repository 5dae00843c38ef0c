//! Rooms over HTTP, word by word (`docs/PROTOCOL.md` §7).

use std::time::Duration;

use futures_util::future::join_all;
use serde_json::{Value, json};

use crate::harness::{Answer, Person, Room, Stack, eventually};

const CANNOT_CLOSE: &str = "关播异常，请稍后再试";

const WHICH_TYPE: &str = "需要给定直播间类型";

const WHICH_ROOM: &str = "需要给定直播间id";

const WHICH_PAGE: &str = "分页查询参数错误";

/// A list of the newest rooms is at most this old.
const SOON: Duration = Duration::from_secs(2);

async fn list(person: &Person, kind: &str, page: usize, size: usize) -> (Vec<Value>, bool) {
    let (page, size) = (page.to_string(), size.to_string());
    let params = [("type", kind), ("page", page.as_str()), ("pageSize", size.as_str())];
    let data = person.gets("/living/list", &params).await;
    let rooms = data["list"].as_array().unwrap_or_else(|| panic!("no list in {data}")).clone();
    (rooms, data["hasNext"].as_bool().unwrap_or_else(|| panic!("no hasNext in {data}")))
}

async fn is_listed(person: &Person, room: &Room) -> bool {
    let (rooms, _) = list(person, "1", 1, 100).await;
    rooms.iter().any(|listed| listed["id"] == room.0)
}

#[tokio::test]
async fn each_mistake_gets_its_own_words() {
    let stack = Stack::start().await;
    let (nobody, ann) = (stack.stranger(), stack.person("ann").await);
    let anchor = stack.anchor("anchor").await;
    let over = anchor.opens_room().await;
    anchor.closes(&over).await;
    let room = anchor.opens_room().await;
    let (open, over) = (room.to_string(), over.to_string());
    let start = "/living/startingLiving";
    let close = "/living/closeLiving";
    for (who, route, params, code, words) in [
        (&nobody, start, vec![("type", "1")], 401, None),
        (&nobody, close, vec![("roomId", open.as_str())], 401, None),
        (&nobody, "/living/anchorConfig", vec![("roomId", open.as_str())], 401, None),
        (&nobody, "/im/getImConfig", vec![], 401, None),
        (&nobody, "/im/isOnline", vec![("userId", "10001")], 401, None),
        (&ann, start, vec![("type", "1")], 403, None),
        (&anchor, start, vec![], 400, Some(WHICH_TYPE)),
        (&anchor, start, vec![("type", "")], 400, Some(WHICH_TYPE)),
        (&anchor, start, vec![("type", "3")], 400, Some(WHICH_TYPE)),
        (&anchor, start, vec![("type", "tea")], 400, Some(WHICH_TYPE)),
        (&anchor, close, vec![], 400, Some(WHICH_ROOM)),
        (&ann, close, vec![("roomId", open.as_str())], 501, Some(CANNOT_CLOSE)),
        (&anchor, close, vec![("roomId", "999999999")], 501, Some(CANNOT_CLOSE)),
        (&anchor, close, vec![("roomId", over.as_str())], 501, Some(CANNOT_CLOSE)),
        (&ann, "/living/anchorConfig", vec![], 400, None),
        (&ann, "/living/list", vec![("page", "1"), ("pageSize", "10")], 400, Some(WHICH_TYPE)),
        (&ann, "/living/list", vec![("type", "1")], 400, Some(WHICH_PAGE)),
        (&ann, "/im/isOnline", vec![], 400, None),
    ] {
        let answer = who.asks(route, &params).await;
        let mistake = format!("{route} {params:?} by {}: {answer:?}", who.name);
        assert_eq!((answer.code, answer.data), (code, Value::Null), "{mistake}");
        assert!(words.is_none_or(|words| words == answer.msg), "{mistake}");
        assert!(!answer.msg.is_empty(), "{mistake}");
    }
    for (page, size) in
        [("0", "10"), ("-1", "10"), ("1", "0"), ("1", "-1"), ("1", "101"), ("x", "10")]
    {
        let params = [("type", "1"), ("page", page), ("pageSize", size)];
        let answer = nobody.asks("/living/list", &params).await;
        assert_eq!((answer.code, answer.msg.as_str()), (400, WHICH_PAGE), "{params:?}");
    }
    assert_eq!(ann.looks_at(&room).await["roomId"], room.0, "none of this closed it");
    stack.stop().await;
}

#[tokio::test]
async fn an_anchor_has_one_room_however_often_they_ask() {
    let stack = Stack::start().await;
    let anchor = stack.anchor("anchor").await;
    let starts = join_all((0..10).map(|_| anchor.opens_room())).await;
    let room = starts[0];
    assert_eq!(starts, [room; 10]);
    assert_eq!(anchor.opens_room().await, room);

    let id = room.to_string();
    let params = [("roomId", id.as_str())];
    let closes = (0..10).map(|_| anchor.asks("/living/closeLiving", &params));
    let mut answers = join_all(closes).await;
    answers.sort_by_key(|answer| answer.code);
    let said = |answer: &Answer| (answer.code, answer.msg.clone());
    assert_eq!(said(&answers[0]), (200, "success".to_owned()));
    for refused in &answers[1..] {
        assert_eq!(said(refused), (501, CANNOT_CLOSE.to_owned()));
    }
    assert!(room < anchor.opens_room().await, "a roomId is never used again");
    stack.stop().await;
}

#[tokio::test]
async fn a_room_that_closes_tells_its_viewers_and_is_gone() {
    let stack = Stack::start().await;
    let anchor = stack.anchor("anchor").await;
    let room = anchor.opens_room().await;
    let [mut ann] = stack.browsers(&room, ["ann"]).await;
    let mut bob = stack.phone(&room, "bob").await;
    let outside = stack.person("cid").await;
    eventually("the room is listed", SOON, async || is_listed(&outside, &room).await).await;

    anchor.closes(&room).await;
    let (to_ann, to_bob) = (ann.is_told(5600).await, bob.is_told(5600).await);
    assert_eq!(to_ann["data"], json!({ "roomId": room.0 }).to_string());
    assert!(to_ann["msgId"].is_string(), "it is acknowledged like chat: {to_ann}");
    assert_eq!((&to_ann["data"], &to_ann["msgId"]), (&to_bob["data"], &to_bob["msgId"]));
    eventually("the list drops the room", SOON, async || !is_listed(&outside, &room).await).await;
    assert_eq!(outside.looks_at(&room).await["roomId"], -1);

    for viewer in [&mut ann, &mut bob] {
        viewer.says(&room, "hello?");
        viewer.is_refused(4004).await;
        viewer.heartbeat().await;
    }
    ann.whispers(&bob.person, "that was that");
    bob.hears("that was that").await;
    let path = format!("/{}/{}/1001/{room}", outside.token().await, outside.id);
    assert_eq!(outside.knocks(&path, &[]).await.err(), Some(404));
    stack.owes_nothing().await;
    stack.stop().await;
}

#[tokio::test]
async fn a_rooms_page_knows_who_looks_at_it() {
    let stack = Stack::start().await;
    let (anchor, ann) = (stack.anchor("anchor").await, stack.person("ann").await);
    let unknown = ann.looks_at(&Room(1_000_000)).await;
    assert_eq!(unknown["roomId"], -1);
    let room = anchor.opens_room().await;
    let page = |viewer: &Person, is_anchor: bool| {
        json!({
            "anchorId": anchor.id, "userId": viewer.id, "anchorImg": anchor.avatar,
            "roomName": "anchor's room", "anchor": is_anchor, "isAnchor": is_anchor,
            "avatar": anchor.avatar, "roomId": room.0, "nickName": viewer.name,
            "watcherNickName": viewer.name, "anchorNickName": anchor.name,
            "watcherAvatar": viewer.avatar, "watchNum": 0,
        })
    };
    for (viewer, is_anchor) in [(&anchor, true), (&ann, false)] {
        let mut seen = viewer.looks_at(&room).await;
        let image = seen["defaultBgImg"].take();
        assert!(image.as_str().is_some_and(|url| !url.is_empty()), "{image}");
        let seen = seen.as_object_mut().expect("an object");
        assert!(seen.remove("pkObjId").is_some(), "pkObjId is there, if only as null");
        seen.remove("defaultBgImg");
        assert_eq!(Value::Object(seen.clone()), page(viewer, is_anchor));
    }

    let other = stack.anchor("nameless").await;
    let data = other.gets("/living/startingLiving", &[("type", "1")]).await;
    let room = Room(data["roomId"].as_u64().expect("a roomId"));
    assert_eq!(ann.looks_at(&room).await["roomName"], format!("主播-{}的直播间", other.id));
    stack.stop().await;
}

#[tokio::test]
async fn the_list_is_read_page_by_page_without_overlap() {
    let stack = Stack::start().await;
    let mut opened = Vec::new();
    let mut anchors = Vec::new();
    for number in 0..25 {
        let anchor = stack.anchor(&format!("anchor {number}")).await;
        opened.push(anchor.opens_room().await.0);
        anchors.push(anchor);
    }
    let of_type_2 = stack.anchor("elsewhere").await;
    of_type_2.gets("/living/startingLiving", &[("type", "2")]).await;
    opened.reverse();

    let nobody = stack.stranger();
    eventually("all are listed", SOON, async || list(&nobody, "1", 1, 100).await.0.len() == 25)
        .await;
    let mut ids = Vec::new();
    for (page, rows, more) in [(1, 10, true), (2, 10, true), (3, 5, false), (4, 0, false)] {
        let (rooms, has_next) = list(&nobody, "1", page, 10).await;
        assert_eq!((rooms.len(), has_next), (rows, more), "page {page}");
        ids.extend(rooms.iter().map(|room| room["id"].as_u64().expect("a number")));
    }
    assert_eq!(ids, opened, "newest first");

    let (rooms, _) = list(&nobody, "1", 3, 10).await;
    let mut oldest = rooms[4].clone();
    assert!(oldest["covertImg"].is_string() || oldest["covertImg"].is_null(), "{oldest}");
    oldest["covertImg"].take();
    let expected = json!({
        "id": opened[24], "roomName": "anchor 0's room", "anchorId": anchors[0].id,
        "watchNum": 0, "goodNum": 0, "covertImg": null,
    });
    assert_eq!(oldest, expected);
    assert_eq!(list(&nobody, "2", 1, 10).await.0.len(), 1);
    stack.stop().await;
}
