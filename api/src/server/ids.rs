//! Reading ids from JSON.

use std::{fmt, str::FromStr};

use qiyu_schema::UserId;
use serde::{Deserialize, Deserializer};

/// Reads an id: a number, or a string of its digits, because JavaScript cannot write every id as a
/// number.
pub(super) fn id<'de, D: Deserializer<'de>, T: FromStr<Err: fmt::Display>>(
    from: D,
) -> Result<T, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged, expecting = "an id: a number or a string of digits")]
    enum RawId {
        Number(u64),
        Digits(String),
    }
    let text = match RawId::deserialize(from)? {
        RawId::Number(number) => number.to_string(),
        RawId::Digits(digits) => digits,
    };
    text.parse().map_err(serde::de::Error::custom)
}

/// Reads an id as [`id`]; null means absent.
pub(super) fn maybe_id<'de, D: Deserializer<'de>, T: FromStr<Err: fmt::Display>>(
    from: D,
) -> Result<Option<T>, D::Error> {
    struct ParsedId<T>(T);
    impl<'de, T: FromStr<Err: fmt::Display>> Deserialize<'de> for ParsedId<T> {
        fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
            id(from).map(Self)
        }
    }
    Ok(Option::<ParsedId<T>>::deserialize(from)?.map(|id| id.0))
}

/// Reads several ids as [`id`].
pub(super) fn ids<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<UserId>, D::Error> {
    #[derive(Deserialize)]
    struct UserIdItem(#[serde(deserialize_with = "id")] UserId);
    Ok(Vec::<UserIdItem>::deserialize(from)?.into_iter().map(|item| item.0).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_numbers_or_digits_and_exact() {
        #[derive(Deserialize)]
        struct Ids {
            #[serde(deserialize_with = "id")]
            user: UserId,
            #[serde(default, deserialize_with = "maybe_id")]
            other: Option<UserId>,
        }
        let read = |text: &str| {
            serde_json::from_str::<Ids>(text).ok().map(|ids| (ids.user.get(), ids.other))
        };
        let big = 285_608_972_927_369_217;
        assert_eq!(read(r#"{"user":285608972927369217}"#), Some((big, None)));
        assert_eq!(read(r#"{"user":"285608972927369217","other":null}"#), Some((big, None)));
        for bad in [
            r#"{"user":9999}"#,
            r#"{"user":1e5}"#,
            r#"{"user":"x"}"#,
            r#"{"user":10000,"other":[]}"#,
            "{}",
        ] {
            assert_eq!(read(bad), None, "{bad}");
        }
    }
}
