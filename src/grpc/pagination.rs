//! Lists in pages (AIP-158): the requested page, and the size limit of one answer.

use std::{fmt::Display, str::FromStr};

use jiff::Timestamp;
use prost::{Message, length_delimiter_len};

use super::convert::Fields;
use crate::broker::{Error, ports::PageRequest};

/// Maximum number of entries in one page.
const ENTRIES_MAX: u32 = 1000;
const ENTRIES_DEFAULT: u32 = 100;
/// Maximum size of an encoded list answer, bytes. The first entry is included whatever its size.
const BYTES_MAX: usize = 256 * 1024;
/// Bytes of these that are reserved for the next page's token, a key made of names and ids.
const TOKEN_BYTES: usize = 256;

/// Parses the request of a page. Its token is a key `K`, that of the previous page's last entry.
pub(super) fn parse_page<K: FromStr>(size: i32, token: String) -> Result<PageRequest, Error> {
    let mut fields = Fields::default();
    let limit = match u32::try_from(size) {
        Ok(0) => ENTRIES_DEFAULT,
        Ok(size) => size.min(ENTRIES_MAX),
        Err(_) => {
            fields.add("page_size", "a page has 1 to 1,000 entries");
            0
        }
    };
    let after = (!token.is_empty()).then_some(token);
    if after
        .as_deref()
        .is_some_and(|key| key.parse::<K>().is_err())
    {
        fields.add(
            "page_token",
            "not a page token of this list: send `next_page_token` of the last answer unchanged",
        );
    }
    fields.done(Some(PageRequest { after, limit }))
}

/// Returns the requested page of a short list that is in memory as a whole, sorted by key.
pub(super) fn part_of<T, K: FromStr + Ord>(
    page: &PageRequest,
    mut whole: Vec<T>,
    key: impl Fn(&T) -> K,
) -> Vec<T> {
    if let Some(after) = page.after.as_deref().and_then(|after| after.parse().ok()) {
        whole.retain(|entry| key(entry) > after);
    }
    whole.truncate(usize::try_from(page.limit).unwrap_or(usize::MAX));
    whole
}

/// Returns the entries of an answer and the token of the next page, which is empty if no entry may
/// follow. `found` has the requested entries; as many are used as fit beside the `other` bytes of
/// the answer.
pub(super) fn build_page<T, M: Message, K: Display>(
    page: &PageRequest,
    found: &[T],
    other: usize,
    key: impl Fn(&T) -> K,
    to_message: impl Fn(&T) -> M,
) -> (Vec<M>, String) {
    let mut room = SizeBudget::beside(other + TOKEN_BYTES);
    let entries: Vec<M> = found
        .iter()
        .map(to_message)
        .take_while(|entry| room.try_reserve(entry))
        .collect();
    let cut = entries.len() < found.len();
    let full = u32::try_from(found.len()).is_ok_and(|count| count == page.limit);
    let last = entries.len().checked_sub(1).map(|at| &found[at]);
    let next = last
        .filter(|_| cut || full)
        .map(|last| key(last).to_string());
    (entries, next.unwrap_or_default())
}

/// Bytes of an answer that are still free.
pub(super) struct SizeBudget {
    bytes: usize,
    empty: bool,
}

impl SizeBudget {
    /// Returns the room that `other` bytes of the answer leave.
    pub(super) const fn beside(other: usize) -> Self {
        Self {
            bytes: BYTES_MAX.saturating_sub(other),
            empty: true,
        }
    }

    /// Takes room for an entry of a repeated field with a tag of one byte. Returns whether the
    /// entry fits; the first entry always does.
    pub(super) fn try_reserve(&mut self, entry: &impl Message) -> bool {
        let length = entry.encoded_len();
        let bytes = 1 + length_delimiter_len(length) + length;
        let fits = self.empty || bytes <= self.bytes;
        self.bytes = self.bytes.saturating_sub(bytes);
        self.empty = false;
        fits
    }
}

/// Key of a list that is sorted oldest first.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct CreatedCursor {
    /// Time in microseconds, the store's precision.
    at: i64,
    id: String,
}

impl CreatedCursor {
    pub(super) fn new(at: Timestamp, id: &impl Display) -> Self {
        Self {
            at: at.as_microsecond(),
            id: id.to_string(),
        }
    }
}

impl Display for CreatedCursor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}.{}", self.at, self.id)
    }
}

impl FromStr for CreatedCursor {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let (at, id) = text.split_once('.').ok_or(())?;
        Ok(Self {
            at: at.parse().map_err(drop)?,
            id: id.to_owned(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::{ListServicesResponse, Service};

    fn named(size: usize) -> Service {
        Service {
            name: "x".repeat(size),
            ..Service::default()
        }
    }

    /// Returns the answer over entries of these sizes, requested with `limit`.
    fn answer(sizes: &[usize], limit: u32) -> ListServicesResponse {
        let page = PageRequest { after: None, limit };
        let (services, next_page_token) =
            build_page(&page, sizes, 0, |size| *size, |size| named(*size));
        ListServicesResponse {
            services,
            next_page_token,
        }
    }

    #[test]
    fn an_answer_takes_what_there_is_room_for_and_leads_to_the_rest() {
        for size in [1, 127, 128, 1000, 20_000, BYTES_MAX / 2] {
            let full = answer(&vec![size; 1000], 1000);
            assert!(full.encoded_len() <= BYTES_MAX, "{size}");
            assert_eq!(full.next_page_token, size.to_string());
            let one_more = full.encoded_len() + named(size).encoded_len();
            let all = full.services.len() == 1000;
            assert!(all || one_more > BYTES_MAX - 2 * TOKEN_BYTES, "{size}");
        }
        let all = answer(&[7; 10], 11);
        assert_eq!((all.services.len(), all.next_page_token.as_str()), (10, ""));
        assert_eq!(answer(&[7; 11], 11).next_page_token, "7");
        assert_eq!(answer(&[], 11), ListServicesResponse::default());
    }

    #[test]
    fn one_entry_is_there_whatever_its_size_and_alone() {
        let large = answer(&[2 * BYTES_MAX, 3], 10);
        assert_eq!(large.services.len(), 1);
        assert_eq!(large.next_page_token, (2 * BYTES_MAX).to_string());
        assert_eq!(answer(&[3, 2 * BYTES_MAX], 10).next_page_token, "3");
    }

    #[test]
    fn parts_of_a_list_at_hand_make_up_the_whole() {
        let whole: Vec<(i64, &str)> = vec![(9, "b"), (10, "a"), (10, "b"), (11, "a")];
        let key = |entry: &(i64, &str)| CreatedCursor {
            at: entry.0,
            id: entry.1.to_owned(),
        };
        let (mut found, mut after) = (Vec::new(), String::new());
        loop {
            let page = parse_page::<CreatedCursor>(1, after).unwrap();
            let part = part_of(&page, whole.clone(), key);
            let (_, next) = build_page(&page, &part, 0, key, |_| named(1));
            found.extend(part);
            if next.is_empty() {
                break;
            }
            after = next;
        }
        assert_eq!(found, whole);
        assert!(parse_page::<CreatedCursor>(1, "a.b".to_owned()).is_err());
    }
}
