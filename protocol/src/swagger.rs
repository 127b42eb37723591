//! The description of the scoring route (`/swagger.json`) for a `run()` without a schema, in three versions.
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

/// The description in the version that the query parameter `version` asks for. It is the same for every
/// request, so a front may keep it.
///
/// # Errors
/// The text of the 404 if there is no such version.
pub fn document(version: Option<&str>, service: &ServiceInfo) -> Result<Bytes, String> {
    let version = Version::parse(version, Version::ALL)?;
    let document = match version {
        Version::V2 => swagger_2(service),
        Version::V3 => openapi_3("3.0.3", service),
        Version::V3_1 => openapi_3("3.1.0", service),
    };
    Ok(Bytes::from(document.to_string()))
}

const HEALTH: &str = "Whether the service is up.";
const HEALTH_OK: &str = "The service is up; the body is 'Healthy'.";
const SCORE: &str = "Runs the model and answers with its prediction.";
const SCORE_INPUT: &str = "What the model is run on.";
const SCORE_OK: &str = "The prediction.";
const SWAGGER: &str = "This description.";
const ERROR: &str = "The call failed; the body says why.";

fn swagger_2(service: &ServiceInfo) -> Value {
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
        "definitions": schemas(),
    })
}

fn openapi_3(openapi: &str, service: &ServiceInfo) -> Value {
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
        "components": { "schemas": schemas(), "securitySchemes": { "Bearer": bearer() } },
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

fn schemas() -> Value {
    json!({
        "ServiceInput": { "type": "object", "example": {} },
        "ServiceOutput": { "type": "object", "example": {} },
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
        serde_json::from_slice(&document(version, service).unwrap()).unwrap()
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
                document(Some(version), &ServiceInfo::default()).unwrap_err(),
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
}
