//! The names of operations, which code that is made of a description has for its functions.
//!
//! A name comes from the method and the route alone, and from the model or the configured path where the operation is for one. What else is in
//! a description has no part in it, so that a client that is made again keeps its names.

use std::fmt::Write as _;

/// The name of what a method does at a route: `getV2ModelsModelReady`. Where that is for one model, or at a path of the operator's, that follows
/// behind `_`, by which no name of a route is followed: `postV2ModelsModelInfer_resnet_2d50`.
pub(super) fn of(method: &str, route: &str, one: Option<&str>) -> String {
    let mut id = method.to_owned();
    let words = route.split(|character: char| !character.is_ascii_alphanumeric());
    for word in words.filter(|word| !word.is_empty()) {
        let mut characters = word.chars();
        id.extend(characters.next().map(|first| first.to_ascii_uppercase()));
        id.push_str(characters.as_str());
    }
    if let Some(one) = one {
        id.push('_');
        escaped(one, &mut id);
    }
    id
}

/// Letters and digits as they are, every other byte as `_` and two digits: different texts stay different.
fn escaped(text: &str, id: &mut String) {
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() {
            id.push(char::from(byte));
        } else {
            // Writing to a string does not fail.
            let _ = write!(id, "_{byte:02x}");
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn names_say_method_route_and_model() {
        assert_eq!(of("get", "/v2/models/{model}/ready", None), "getV2ModelsModelReady");
        assert_eq!(
            of("post", "/v2/models/{model}/infer", Some("resnet-50")),
            "postV2ModelsModelInfer_resnet_2d50"
        );
    }

    #[test]
    fn different_models_and_paths_have_different_names() {
        let names = ["ab", "a-b", "a_b", "a.b", "a_2db", "aB", "model", "é", ""];
        let ids: BTreeSet<_> = names.map(|name| of("post", "/models/{model}/invoke", Some(name))).into();
        assert_eq!(ids.len(), names.len());
        assert!(!ids.contains(&of("post", "/models/{model}/invoke", None)));
    }

    #[test]
    fn every_route_has_a_name_of_its_own() {
        for listener in ["score", "observe", "admin"] {
            let routes = crate::http::routes::routes();
            let paths: Vec<_> =
                routes.iter().filter(|route| route.listener == listener).map(|route| route.path).collect();
            let ids: BTreeSet<_> = paths.iter().map(|path| of("get", path, None)).collect();
            assert_eq!(ids.len(), paths.len(), "{listener}");
            assert!(!ids.iter().any(|id| id.contains('_')), "{ids:?}");
        }
    }
}
