//! Form of a query-protocol call, as the broker sent it to AWS.

use std::collections::BTreeMap;

use percent_encoding::percent_decode_str;
use serde_json::Value;

/// Fields of one recorded call.
#[derive(Debug)]
pub struct Form(BTreeMap<String, String>);

impl Form {
    pub fn of(body: &str) -> Self {
        let decode = |text: &str| {
            let text = text.replace('+', " ");
            percent_decode_str(&text)
                .decode_utf8()
                .unwrap()
                .into_owned()
        };
        let pairs = body.split('&').filter_map(|pair| pair.split_once('='));
        Self(pairs.map(|(k, v)| (decode(k), decode(v))).collect())
    }

    pub fn get(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(String::as_str)
    }

    /// A field that holds a policy document.
    pub fn document(&self, name: &str) -> Value {
        serde_json::from_str(self.get(name).unwrap()).unwrap()
    }

    /// `NAME.member.1`, `NAME.member.2`, …, each with `suffix`.
    pub fn members(&self, name: &str, suffix: &str) -> Vec<&str> {
        (1..)
            .map_while(|number| self.get(&format!("{name}.member.{number}{suffix}")))
            .collect()
    }

    /// Keys and values of `Tags`.
    pub fn tags(&self) -> Vec<(&str, &str)> {
        let values = self.members("Tags", ".Value");
        self.members("Tags", ".Key")
            .into_iter()
            .zip(values)
            .collect()
    }
}
