//! The description of the scoring route (`/swagger.json`), in three versions: made from the schemas of `run()`, or the user's own.
//!
//! Source: the model server's contract: paths, operation identifiers, names of schemas and parameters, and
//! the two texts of a 404 are fixed, the descriptions are ours.

use bytes::Bytes;
use serde_json::{Value, json};

/// What a description says of the service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServiceInfo {
    /// The name, `ML service` by default.
    pub title: String,
    /// The service's version, `1.0` by default.
    pub version: String,
    /// What comes before every path; slashes at the ends do not matter.
    pub path_prefix: String,
}

impl Default for ServiceInfo {
    fn default() -> Self {
        Self { title: "ML service".into(), version: "1.0".into(), path_prefix: String::new() }
    }
}

/// The versions of the description.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Version {
    /// Swagger 2.0.
    V2,
    /// OpenAPI 3.0.
    V3,
    /// OpenAPI 3.1.
    V3_1,
}

impl Version {
    /// Every version, in ascending order.
    pub const ALL: &'static [Self] = &[Self::V2, Self::V3, Self::V3_1];

    /// Reads the query parameter `version`; without one it is 2.
    ///
    /// # Errors
    /// The text of the 404 if there is no such version. `supported` is what the service can express.
    pub fn parse(text: Option<&str>, supported: &[Self]) -> Result<Self, String> {
        let version = match text {
            None | Some("2" | "2.0") => Self::V2,
            Some("3" | "3.0") => Self::V3,
            Some("3.1") => Self::V3_1,
            Some(other) => {
                let supported = list(supported);
                return Err(format!(
                    "Swagger version [{other}] is not valid. Supported versions: [{supported}]."
                ));
            }
        };
        if supported.contains(&version) {
            return Ok(version);
        }
        Err(format!(
            "Swagger version [{}] is not supported for the scoring script. Supported swagger versions: [{}].",
            text.unwrap_or("2"),
            list(supported)
        ))
    }

    /// The name in the query: `2`, `3`, `3.1`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::V2 => "2",
            Self::V3 => "3",
            Self::V3_1 => "3.1",
        }
    }
}

fn list(versions: &[Version]) -> String {
    versions.iter().map(|version| version.as_str()).collect::<Vec<_>>().join(", ")
}

/// Input and output of `run()`, as the worker reports them in READY.
///
/// Each version has the JSON schemas of both, or nothing where the script's types cannot be said in it (version 2 knows no
/// arrays of mixed types).
#[derive(Clone, Debug, PartialEq)]
pub struct Schemas {
    versions: [Option<[Value; 2]>; Version::ALL.len()],
}

impl Default for Schemas {
    /// Those of a `run()` without a schema.
    fn default() -> Self {
        Self { versions: std::array::from_fn(|_| Some([any_object(), any_object()])) }
    }
}

impl Schemas {
    /// Reads READY's field `swagger`: `{"2": {"input": schema, "output": schema} or null, "3": .., "3.1": ..}`, or nothing for a
    /// `run()` without a schema. A version that is missing counts as null, a schema that is missing as any object.
    pub fn from_ready(swagger: Option<&Value>) -> Self {
        let Some(Value::Object(versions)) = swagger else { return Self::default() };
        let schema = |of: &Value, name: &str| match of.get(name) {
            None | Some(Value::Null) => any_object(),
            Some(schema) => schema.clone(),
        };
        let read = |version: Version| match versions.get(version.as_str()) {
            None | Some(Value::Null) => None,
            Some(of) => Some([schema(of, "input"), schema(of, "output")]),
        };
        Self { versions: [read(Version::V2), read(Version::V3), read(Version::V3_1)] }
    }

    /// Input and output for the newest version of the description; nothing where the script's types cannot be said in it.
    pub fn newest(&self) -> Option<&[Value; 2]> {
        self.of(Version::V3_1)
    }

    fn of(&self, version: Version) -> Option<&[Value; 2]> {
        self.versions.get(version as usize)?.as_ref()
    }
}

fn any_object() -> Value {
    json!({ "type": "object", "example": {} })
}

/// The names below the root of the user's code that take the place of the description that is made, in the order in which they are
/// looked for.
pub const USER_FILES: [(Version, &str); 4] = [
    (Version::V2, "swagger.json"),
    (Version::V2, "swagger2.json"),
    (Version::V3, "swagger3.json"),
    (Version::V3_1, "swagger3.1.json"),
];

/// All descriptions of a service, made once.
#[derive(Clone, Debug)]
pub struct Documents {
    versions: [Option<Bytes>; Version::ALL.len()],
}

impl Documents {
    /// Makes them. `files` are the user's own, which are sent as they are; the first of a version counts.
    pub fn new(service: &ServiceInfo, schemas: &Schemas, files: &[(Version, Bytes)]) -> Self {
        let own = |version| files.iter().find(|(of, _)| *of == version).map(|(_, text)| text.clone());
        let make = |version| own(version).or_else(|| describe(version, service, schemas));
        Self { versions: [make(Version::V2), make(Version::V3), make(Version::V3_1)] }
    }

    /// The description in the version that the query parameter `version` asks for.
    ///
    /// # Errors
    /// The text of the 404 if there is no such version, or the script cannot be described in it.
    pub fn get(&self, version: Option<&str>) -> Result<Bytes, String> {
        let of = |version: Version| self.versions.get(version as usize).and_then(Option::as_ref);
        let supported: Vec<_> =
            Version::ALL.iter().copied().filter(|version| of(*version).is_some()).collect();
        let version = Version::parse(version, &supported)?;
        // `parse` gives none but the supported ones.
        Ok(of(version).cloned().unwrap_or_default())
    }
}

/// The description in the version that the query parameter `version` asks for, for a service without files of its own.
///
/// # Errors
/// As [`Documents::get`].
pub fn document(version: Option<&str>, service: &ServiceInfo, schemas: &Schemas) -> Result<Bytes, String> {
    Documents::new(service, schemas, &[]).get(version)
}

fn describe(version: Version, service: &ServiceInfo, schemas: &Schemas) -> Option<Bytes> {
    let schemas = named(schemas.of(version)?);
    let document = match version {
        Version::V2 => swagger_2(service, &schemas),
        Version::V3 => openapi_3("3.0.3", service, &schemas),
        Version::V3_1 => openapi_3("3.1.0", service, &schemas),
    };
    Some(Bytes::from(document.to_string()))
}

const HEALTH: &str = "Whether the service is up.";
const HEALTH_OK: &str = "The service is up; the body is 'Healthy'.";
const SCORE: &str = "Runs the model and answers with its prediction.";
const SCORE_INPUT: &str = "What the model is run on.";
const SCORE_OK: &str = "The prediction.";
const SWAGGER: &str = "This description.";
const ERROR: &str = "The call failed; the body says why.";

fn swagger_2(service: &ServiceInfo, schemas: &Value) -> Value {
    let error = json!({ "description": ERROR, "schema": { "$ref": "#/definitions/ErrorResponse" } });
    let paths = paths(
        service,
        json!({ "get": {
            "operationId": "ServiceHealthCheck",
            "description": HEALTH,
            "responses": {
                "200": {
                    "description": HEALTH_OK,
                    "schema": { "type": "string" },
                    "examples": { "application/json": "Healthy" },
                },
                "default": error,
            },
        } }),
        json!({ "post": {
            "operationId": "RunMLService",
            "description": SCORE,
            "security": [{ "Bearer": [] }],
            "parameters": [{
                "name": "serviceInputPayload",
                "in": "body",
                "description": SCORE_INPUT,
                "schema": { "$ref": "#/definitions/ServiceInput" },
            }],
            "responses": {
                "200": { "description": SCORE_OK, "schema": { "$ref": "#/definitions/ServiceOutput" } },
                "default": error,
            },
        } }),
        json!({ "get": {
            "operationId": "GetSwaggerSpec",
            "description": SWAGGER,
            "parameters": [{
                "name": "version",
                "in": "query",
                "required": false,
                "type": "string",
                "enum": ["2", "3", "3.1"],
            }],
            "responses": {
                "200": { "description": SWAGGER, "schema": { "type": "string" } },
                "default": error,
            },
        } }),
    );
    json!({
        "swagger": "2.0",
        "info": info(service),
        "schemes": ["https", "http"],
        "consumes": ["application/json"],
        "produces": ["application/json"],
        "securityDefinitions": { "Bearer": bearer() },
        "paths": paths,
        "definitions": schemas,
    })
}

fn openapi_3(openapi: &str, service: &ServiceInfo, schemas: &Value) -> Value {
    let error = json!({
        "description": ERROR,
        "content": { "application/json": { "schema": { "$ref": "#/components/schemas/ErrorResponse" } } },
    });
    let paths = paths(
        service,
        json!({ "get": {
            "operationId": "ServiceHealthCheck",
            "description": HEALTH,
            "security": [],
            "responses": {
                "200": {
                    "description": HEALTH_OK,
                    "content": { "text/html": { "schema": { "type": "string", "example": "Healthy" } } },
                },
                "default": error,
            },
        } }),
        json!({ "post": {
            "operationId": "RunMLService",
            "description": SCORE,
            "security": [{ "Bearer": [] }],
            "requestBody": {
                "description": SCORE_INPUT,
                "content": {
                    "application/json": { "schema": { "$ref": "#/components/schemas/ServiceInput" } },
                },
            },
            "responses": {
                "200": {
                    "description": SCORE_OK,
                    "content": {
                        "application/json": { "schema": { "$ref": "#/components/schemas/ServiceOutput" } },
                    },
                },
                "default": error,
            },
        } }),
        json!({ "get": {
            "operationId": "GetSwaggerSpec",
            "description": SWAGGER,
            "parameters": [{
                "name": "version",
                "in": "query",
                "required": false,
                "schema": { "type": "string", "enum": ["2", "3", "3.1"] },
            }],
            "responses": {
                "200": {
                    "description": SWAGGER,
                    "content": { "application/json": { "schema": { "type": "object" } } },
                },
                "default": error,
            },
        } }),
    );
    json!({
        "openapi": openapi,
        "info": info(service),
        "security": [{ "Bearer": [] }],
        "paths": paths,
        "components": { "schemas": schemas, "securitySchemes": { "Bearer": bearer() } },
    })
}

fn info(service: &ServiceInfo) -> Value {
    json!({
        "title": service.title,
        "description": format!("How to call {}.", service.title),
        "version": service.version,
    })
}

fn paths(service: &ServiceInfo, health: Value, score: Value, swagger: Value) -> Value {
    let prefix = match service.path_prefix.trim_matches('/') {
        "" => String::new(),
        trimmed => format!("/{trimmed}"),
    };
    json!({
        (format!("{prefix}/")): health,
        (format!("{prefix}/score")): score,
        (format!("{prefix}/swagger.json")): swagger,
    })
}

fn named([input, output]: &[Value; 2]) -> Value {
    json!({
        "ServiceInput": input,
        "ServiceOutput": output,
        "ErrorResponse": { "type": "object", "properties": { "message": { "type": "string" } } },
    })
}

fn bearer() -> Value {
    json!({
        "type": "apiKey",
        "name": "Authorization",
        "in": "header",
        "description": "The word Bearer, a space, and a key of the service.",
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(version: Option<&str>, service: &ServiceInfo) -> Value {
        serde_json::from_slice(&document(version, service, &Schemas::default()).unwrap()).unwrap()
    }

    #[test]
    fn versions_and_their_aliases() {
        let table = [
            (None, "swagger", "2.0"),
            (Some("2"), "swagger", "2.0"),
            (Some("2.0"), "swagger", "2.0"),
            (Some("3"), "openapi", "3.0.3"),
            (Some("3.0"), "openapi", "3.0.3"),
            (Some("3.1"), "openapi", "3.1.0"),
        ];
        for (version, member, expected) in table {
            assert_eq!(parsed(version, &ServiceInfo::default())[member], expected);
        }
    }

    #[test]
    fn the_two_texts_of_a_404() {
        for version in ["4", "", "2.", "3.10"] {
            assert_eq!(
                document(Some(version), &ServiceInfo::default(), &Schemas::default()).unwrap_err(),
                format!("Swagger version [{version}] is not valid. Supported versions: [2, 3, 3.1].")
            );
        }
        assert_eq!(
            Version::parse(None, &[Version::V3, Version::V3_1]).unwrap_err(),
            "Swagger version [2] is not supported for the scoring script. Supported swagger versions: [3, 3.1]."
        );
    }

    #[test]
    fn operations_and_schemas_have_the_contracts_names() {
        for version in ["2", "3", "3.1"] {
            let document = parsed(Some(version), &ServiceInfo::default());
            assert_eq!(document["info"]["title"], "ML service");
            assert_eq!(document["info"]["version"], "1.0");
            let paths = &document["paths"];
            assert_eq!(paths.as_object().unwrap().len(), 3);
            assert_eq!(paths["/"]["get"]["operationId"], "ServiceHealthCheck");
            assert_eq!(paths["/score"]["post"]["operationId"], "RunMLService");
            assert_eq!(paths["/score"]["post"]["security"], json!([{ "Bearer": [] }]));
            assert_eq!(paths["/swagger.json"]["get"]["operationId"], "GetSwaggerSpec");
            let (schemas, bearer) = if version == "2" {
                assert_eq!(paths["/score"]["post"]["parameters"][0]["name"], "serviceInputPayload");
                (&document["definitions"], &document["securityDefinitions"]["Bearer"])
            } else {
                let components = &document["components"];
                (&components["schemas"], &components["securitySchemes"]["Bearer"])
            };
            for name in ["ServiceInput", "ServiceOutput"] {
                assert_eq!(schemas[name], json!({ "type": "object", "example": {} }));
            }
            assert_eq!(schemas["ErrorResponse"]["properties"]["message"]["type"], "string");
            assert_eq!((&bearer["type"], &bearer["name"]), (&json!("apiKey"), &json!("Authorization")));
        }
    }

    #[test]
    fn every_reference_leads_somewhere() {
        fn check(document: &Value, value: &Value) {
            if let Some(reference) = value.get("$ref").and_then(Value::as_str) {
                let pointer = reference.strip_prefix('#').unwrap();
                assert!(document.pointer(pointer).is_some(), "{reference}");
            }
            match value {
                Value::Array(items) => items.iter().for_each(|item| check(document, item)),
                Value::Object(members) => members.values().for_each(|member| check(document, member)),
                _ => {}
            }
        }
        for version in ["2", "3", "3.1"] {
            let document = parsed(Some(version), &ServiceInfo::default());
            check(&document, &document);
        }
    }

    #[test]
    fn prefixes_lose_their_slashes_and_names_are_escaped() {
        for prefix in ["api/v1", "/api/v1", "/api/v1/"] {
            let service =
                ServiceInfo { title: "a \"b\"".into(), version: "2".into(), path_prefix: prefix.into() };
            let document = parsed(None, &service);
            assert_eq!(document["info"]["title"], "a \"b\"");
            let paths: Vec<_> = document["paths"].as_object().unwrap().keys().collect();
            assert_eq!(paths, ["/api/v1/", "/api/v1/score", "/api/v1/swagger.json"]);
        }
    }

    #[test]
    fn schemas_of_the_script_stand_in_the_description() {
        let (input, output) = (json!({ "type": "array", "items": {} }), json!({ "type": "string" }));
        let both = json!({ "input": input, "output": output });
        let ready = json!({ "2": both, "3": both, "3.1": { "input": input } });
        let schemas = Schemas::from_ready(Some(&ready));
        let service = ServiceInfo::default();
        let document = |version| -> Value {
            serde_json::from_slice(&document(Some(version), &service, &schemas).unwrap()).unwrap()
        };
        assert_eq!(document("2")["definitions"]["ServiceInput"], input);
        assert_eq!(document("3")["components"]["schemas"]["ServiceOutput"], output);
        assert_eq!(document("3.1")["components"]["schemas"]["ServiceOutput"], any_object());
        assert_eq!(Schemas::from_ready(Some(&Value::Null)), Schemas::default());
        assert_eq!(Schemas::from_ready(None), Schemas::default());
    }

    #[test]
    fn a_version_that_the_script_cannot_be_said_in_is_a_404() {
        let both = json!({ "input": {}, "output": {} });
        let schemas = Schemas::from_ready(Some(&json!({ "2": null, "3": both, "3.1": both })));
        let documents = Documents::new(&ServiceInfo::default(), &schemas, &[]);
        for version in [None, Some("2"), Some("2.0")] {
            assert_eq!(
                documents.get(version).unwrap_err(),
                format!(
                    "Swagger version [{}] is not supported for the scoring script. Supported swagger versions: [3, 3.1].",
                    version.unwrap_or("2")
                )
            );
        }
        assert_eq!(
            documents.get(Some("9")).unwrap_err(),
            "Swagger version [9] is not valid. Supported versions: [3, 3.1]."
        );
        assert!(documents.get(Some("3.0")).is_ok());
    }

    #[test]
    fn files_of_the_users_are_sent_as_they_are_and_make_their_version_supported() {
        let schemas = Schemas::from_ready(Some(&json!({})));
        let first = Bytes::from_static(b"{ \"mine\":  1 }");
        let files = [(Version::V2, first.clone()), (Version::V2, Bytes::from_static(b"{}"))];
        let documents = Documents::new(&ServiceInfo::default(), &schemas, &files);
        assert_eq!(documents.get(None).unwrap(), first);
        assert!(documents.get(Some("3")).unwrap_err().ends_with("Supported swagger versions: [2]."));
    }
}
