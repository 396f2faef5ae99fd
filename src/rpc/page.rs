//! Page tokens: opaque to clients, bound to the request they came from (AIP-158). Pure.

use xxhash_rust::xxh3::xxh3_64;

use crate::wire::Malformed;

/// Most items of a page; a larger page size means this one.
pub(super) const PAGE_ITEMS_MAX: usize = 256;
/// A page ends at about this many bytes, well below the 4 MiB that clients accept by default.
pub(super) const PAGE_BYTES_MAX: usize = 1024 * 1024;

/// The page size in force.
pub(super) fn size(requested: i32) -> Result<usize, Malformed> {
    match usize::try_from(requested) {
        Ok(0) => Ok(PAGE_ITEMS_MAX),
        Ok(size) => Ok(size.min(PAGE_ITEMS_MAX)),
        Err(_) => Err(Malformed::new("page_size", "must not be negative")),
    }
}

/// What a token is bound to: a digest of the request without its token and its page size.
pub(super) fn binding(request: &impl prost::Message) -> u64 {
    xxh3_64(&request.encode_to_vec())
}

/// The token that continues behind `place`.
pub(crate) fn token(place: u64, binding: u64) -> String {
    format!("{place:016x}{binding:016x}")
}

/// The token that continues behind two numbers of which the second one decides among equals.
pub(super) fn token_of_two((first, second): (u64, u64), binding: u64) -> String {
    format!("{first:016x}{}", token(second, binding ^ first))
}

/// What [`token_of_two`] has put into a token; `None` for the first page.
pub(super) fn places(token: &str, binding: u64) -> Result<Option<(u64, u64)>, Malformed> {
    if token.is_empty() {
        return Ok(None);
    }
    let (first, second) = token.split_at_checked(16).ok_or_else(malformed)?;
    let first = u64::from_str_radix(first, 16).map_err(|_| malformed())?;
    let second = place(second, binding ^ first, u64::MAX)?.ok_or_else(malformed)?;
    if token_of_two((first, second), binding) == token {
        Ok(Some((first, second)))
    } else {
        Err(malformed())
    }
}

fn malformed() -> Malformed {
    Malformed::new(
        "page_token",
        "not a token of this listing: pass next_page_token unchanged",
    )
}

/// The place to continue behind; `None` for the first page. No token names a place beyond `last`.
pub(crate) fn place(token: &str, binding: u64, last: u64) -> Result<Option<u64>, Malformed> {
    if token.is_empty() {
        return Ok(None);
    }
    let (place, bound) = token.split_at_checked(16).ok_or_else(malformed)?;
    let place = u64::from_str_radix(place, 16).map_err(|_| malformed())?;
    if place > last {
        Err(malformed())
    } else if self::token(place, binding) == token {
        Ok(Some(place))
    } else if bound.len() == 16 {
        Err(Malformed::new(
            "page_token",
            "belongs to another request: repeat the request exactly, with its own token",
        ))
    } else {
        Err(malformed())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_token_gives_back_its_place_to_its_own_request_only(at: u64, binding: u64, other: u64) {
            prop_assert_eq!(place(&token(at, binding), binding, at), Ok(Some(at)));
            prop_assert!(binding == other || place(&token(at, binding), other, at).is_err());
        }

        #[test]
        fn a_token_gives_back_two_numbers_to_its_own_request_only(at: (u64, u64), binding: u64, other: u64) {
            prop_assert_eq!(places(&token_of_two(at, binding), binding), Ok(Some(at)));
            prop_assert!(binding == other || places(&token_of_two(at, binding), other).is_err());
            prop_assert!(places(&token(at.0, binding), binding).is_err());
        }

        #[test]
        fn a_token_for_a_place_beyond_the_last_is_refused(at in 1u64.., binding: u64) {
            prop_assert!(place(&token(at, binding), binding, at - 1).is_err());
        }

        #[test]
        fn any_other_text_is_refused(text in "\\PC{1,40}", binding: u64) {
            let refused = place(&text, binding, u64::MAX);
            prop_assert!(refused.is_err() || token(refused.unwrap().unwrap(), binding) == text);
        }

        #[test]
        fn a_page_has_between_one_and_the_maximum(requested in 0i32..) {
            prop_assert!((1..=PAGE_ITEMS_MAX).contains(&size(requested).unwrap()));
            prop_assert!(size(-requested - 1).is_err());
        }
    }
}
