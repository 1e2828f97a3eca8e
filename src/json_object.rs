//! JSON objects that are read as structs.
//!
//! For a struct, serde's derived code also accepts an array of the fields' values, in their order in the source. Such an
//! array would be a valid command, or the header or claims of a token, until the fields are reordered.

use std::fmt;
use std::marker::PhantomData;

use serde::de::value::MapAccessDeserializer;
use serde::de::{MapAccess, Visitor};
use serde::{Deserialize, Deserializer};

/// A value that is read from a JSON object and from nothing else.
pub struct JsonObject<T>(pub T);

impl<'de, T: Deserialize<'de>> Deserialize<'de> for JsonObject<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<JsonObject<T>, D::Error> {
        deserializer.deserialize_map(ObjectVisitor(PhantomData))
    }
}

struct ObjectVisitor<T>(PhantomData<T>);

impl<'de, T: Deserialize<'de>> Visitor<'de> for ObjectVisitor<T> {
    type Value = JsonObject<T>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<JsonObject<T>, A::Error> {
        T::deserialize(MapAccessDeserializer::new(map)).map(JsonObject)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::value::RawValue;

    use super::*;

    #[derive(Deserialize)]
    struct Fields<'a> {
        #[serde(borrow)]
        raw: Option<&'a RawValue>,
        text: Option<&'a str>,
    }

    fn read(json: &str) -> Option<(Option<&str>, Option<&str>)> {
        let JsonObject(Fields { raw, text }) = serde_json::from_str(json).ok()?;
        Some((raw.map(RawValue::get), text))
    }

    #[test]
    fn object_is_read_and_array_is_not() {
        assert_eq!(
            read(r#" {"raw":[1, 2.50],"other":{"x":1},"text":"a"} "#),
            Some((Some("[1, 2.50]"), Some("a")))
        );
        assert_eq!(read("{}"), Some((None, None)));
        for json in [r#"[[1],"a"]"#, "[]", "null", "1", r#""text""#, r#"{"text":1}"#, "{} {}"] {
            assert_eq!(read(json), None, "{json}");
        }
    }
}
