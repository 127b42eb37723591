// Shows the description that lies beside this page. Texts come into the page as texts alone, never as HTML; the key is in a variable, and nowhere else.
"use strict";

const METHODS = ["get", "put", "post", "delete", "options", "head", "patch"];
const byId = (id) => document.getElementById(id);
let described = null;
let key = "";
/** Of an answer that has no end, or is long, this much is shown. */
const SHOWN = 64 * 1024;

/** An element with attributes and children; a text becomes a text node. */
function el(name, attributes, ...children) {
  const element = document.createElement(name);
  for (const [attribute, value] of Object.entries(attributes || {})) {
    if (attribute.startsWith("on")) element.addEventListener(attribute.slice(2), value);
    else if (value === true) element.setAttribute(attribute, "");
    else if (value !== false && value != null) element.setAttribute(attribute, value);
  }
  element.append(...children.flat(Infinity).filter((child) => child != null));
  return element;
}

/** Paragraphs, with what stands in backticks as code. */
function words(text) {
  return String(text || "").split(/\n\n+/).filter(Boolean).map((paragraph) =>
    el("p", {}, paragraph.split("`").map((part, index) => (index % 2 ? el("code", {}, part) : part))));
}

/** What a value refers to, however often. */
function resolved(value) {
  for (let left = 16; value && value.$ref && left > 0; left--) {
    value = value.$ref.slice(2).split("/").reduce((at, step) => at && at[step.replace(/~1/g, "/").replace(/~0/g, "~")], described);
  }
  return value === undefined || value === null ? true : value;
}

const nameOf = (schema) => (schema && schema.$ref ? schema.$ref.split("/").pop() : "");
const shown = (value) => JSON.stringify(value);

/** A schema in a few words. */
function kind(schema) {
  const name = nameOf(schema);
  const of = resolved(schema);
  if (typeof of !== "object") return of === false ? "nothing" : "anything";
  if ("const" in of) return shown(of.const);
  if (of.enum) return of.enum.map(shown).join(" | ");
  const several = of.anyOf || of.oneOf;
  if (several && several.length < 6) return name || several.map(kind).join(" or ");
  const type = [].concat(of.type || (of.properties ? "object" : "value")).join(" or ");
  if (of.type === "array") return (name ? name + ": " : "") + "array of " + (of.items ? short(of.items) : "anything");
  const least = of.minimum != null ? " ≥ " + of.minimum : "";
  const most = of.maximum != null ? " ≤ " + of.maximum : "";
  // Such as what the model calls an extent.
  const title = of.title && of.title !== name ? " “" + of.title + "”" : "";
  return (name ? name + ": " : "") + type + title + (of.format ? " (" + of.format + ")" : "") + least + most;
}

/** The same in one or two words. */
function short(schema) {
  const of = resolved(schema);
  if (nameOf(schema)) return nameOf(schema);
  if (typeof of !== "object") return of === false ? "nothing" : "anything";
  const several = of.anyOf || of.oneOf;
  if (several) return [...new Set(several.map(short))].slice(0, 4).join(" or ");
  if (of.allOf) return short(of.allOf[0]);
  return "const" in of ? shown(of.const) : [].concat(of.type || (of.properties ? "object" : "value")).join(" or ");
}

/** What is inside a schema; deeper parts are made once they are opened. */
function tree(schema) {
  const of = resolved(schema);
  if (typeof of !== "object") return null;
  const parts = [];
  for (const part of of.allOf || []) parts.push(["", part, false]);
  for (const [name, part] of Object.entries(of.properties || {})) parts.push([name, part, (of.required || []).includes(name)]);
  for (const part of of.prefixItems || []) parts.push(["item", part, true]);
  if (of.items && of.items !== true) parts.push(["each", of.items, false]);
  for (const part of of.anyOf || of.oneOf || []) parts.push(["or", part, false]);
  if (of.additionalProperties && of.additionalProperties !== true) parts.push(["any name", of.additionalProperties, false]);
  if (!parts.length) return null;
  return el("ul", { class: "schema" }, parts.map(([name, part, needed]) => {
    const inner = resolved(part);
    const head = [el("code", { class: needed ? "needed" : "" }, name || "also"), " ", el("span", { class: "quiet" }, kind(part)),
      inner && inner.description ? " — " + inner.description : ""];
    const deep = inner && typeof inner === "object" && (inner.properties || inner.items || inner.anyOf || inner.oneOf || inner.allOf || inner.prefixItems);
    if (!deep) return el("li", {}, head);
    const open = el("details", { ontoggle: () => { if (open.open && open.childElementCount === 1) open.append(tree(part) || ""); } }, el("summary", {}, head));
    return el("li", {}, open);
  }));
}

/** Bodies by media type. */
function bodies(content) {
  return Object.entries(content || {}).map(([media, body]) => [
    el("p", {}, el("code", {}, media), " ", el("span", { class: "quiet" }, kind(body.schema))),
    tree(body.schema),
    body.example === undefined ? null : el("details", {}, el("summary", {}, "Example"), el("pre", { tabindex: 0 }, text(body.example, media))),
  ]).flat();
}

/** A value as it is sent: text is itself, but in JSON. */
const text = (value, media) => (typeof value === "string" && !media.includes("json") ? value : folded(JSON.stringify(value, null, 2)));

/** Lists of numbers on one line. */
function folded(json) {
  return json.replace(/\[\s+((?:[-+.\deE]+|true|false)(?:,\s+(?:[-+.\deE]+|true|false))*)\s+\]/g, (_, items) => "[" + items.replace(/,\s+/g, ", ") + "]");
}

function parametersOf(path, operation) {
  return [...(described.paths[path].parameters || []), ...(operation.parameters || [])].map(resolved);
}

function showOperation(path, method, operation) {
  const details = el("details", { class: "operation", id: operation.operationId },
    el("summary", {}, el("span", { class: "method " + method }, method.toUpperCase()), el("span", { class: "path" }, path),
      el("span", { class: "quiet" }, operation.summary || "")));
  details.addEventListener("toggle", () => {
    if (details.open && details.childElementCount === 1) details.append(inside(path, method, operation));
  });
  return details;
}

function inside(path, method, operation) {
  const parameters = parametersOf(path, operation);
  const body = operation.requestBody && resolved(operation.requestBody);
  return el("div", { class: "inside" },
    words(operation.description),
    parameters.length ? [el("h4", {}, "Parameters"), el("table", {}, el("tbody", {}, parameters.map((parameter) => el("tr", {},
      el("th", { scope: "row" }, el("code", { class: parameter.required ? "needed" : "" }, parameter.name)),
      el("td", { class: "short" }, parameter.in), el("td", {}, kind(parameter.schema)), el("td", {}, parameter.description || "")))))] : null,
    body ? [el("h4", {}, "Body"), bodies(body.content)] : null,
    el("h4", {}, "Answers"),
    Object.entries(operation.responses || {}).map(([status, response]) => {
      const of = resolved(response);
      const headers = Object.keys(of.headers || {});
      return el("details", {}, el("summary", {}, el("code", { class: status < 400 ? "good" : "bad" }, status), " ",
        status < 400 ? of.description : ((of.description || "").match(/`(\w+)`:/g) || [of.description]).map((code) => code.replace(/[`:]/g, "")).join(", ")),
        status < 400 ? null : words(of.description),
        headers.length ? el("p", { class: "quiet" }, "Headers: " + headers.join(", ")) : null,
        bodies(of.content));
    }),
    operation.tags && operation.tags.includes("gRPC") ? null : trial(path, method, operation, parameters, body));
}

/** The beginning of an answer, what it is so far meanwhile, and whether that is the `whole`, it was `cut`, or `stopped`. */
async function read(response, control, seen) {
  if (!response.body) return { answer: "", bytes: 0, ended: "whole" };
  const [reader, decoder] = [response.body.getReader(), new TextDecoder()];
  let [answer, bytes] = ["", 0];
  try {
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return { answer: answer + decoder.decode(), bytes, ended: "whole" };
      bytes += value.byteLength;
      answer += decoder.decode(value.subarray(0, SHOWN), { stream: true });
      seen(answer.slice(0, SHOWN));
      if (bytes > SHOWN) {
        await reader.cancel();
        return { answer: answer.slice(0, SHOWN), bytes, ended: "cut" };
      }
    }
  } catch (error) {
    if (control.signal.aborted) return { answer, bytes, ended: "stopped" };
    throw error;
  }
}

/** Whether anything here needs a key. */
function isKeyed() {
  const operations = Object.values(described.paths).flatMap((item) => METHODS.map((method) => item[method])).filter(Boolean);
  return [described, ...operations].some((one) => (one.security || []).length > 0);
}

/** A request to send, and the same for a terminal. */
function trial(path, method, operation, parameters, body) {
  const inputs = parameters.map((parameter) => {
    const schema = resolved(parameter.schema);
    const value = parameter.example ?? (parameter.in === "path" ? schema.default : undefined) ?? "";
    return [parameter, el("input", { value, autocomplete: "off", spellcheck: "false", required: parameter.required, placeholder: schema.default ?? "" })];
  });
  const media = body && Object.keys(body.content).find((name) => name.includes("json")) || (body && Object.keys(body.content)[0]);
  const area = media ? el("textarea", { spellcheck: "false", "aria-label": "Body" }) : null;
  if (area) area.value = body.content[media].example === undefined ? "" : text(body.content[media].example, media);
  const type = media && media.includes("*") ? el("input", { value: "application/json", autocomplete: "off", spellcheck: "false" }) : null;
  const curl = el("pre", { tabindex: 0 });
  const result = el("div", { role: "status", "aria-live": "polite" });

  const request = () => {
    let target = path;
    const query = new URLSearchParams();
    const headers = {};
    for (const [parameter, input] of inputs) {
      if (parameter.in === "path") target = target.replace("{" + parameter.name + "}", encodeURIComponent(input.value));
      else if (parameter.in === "query" && resolved(parameter.schema).type === "object") {
        // An object in a query is its members, each by its name.
        for (const [name, value] of new URLSearchParams(input.value)) query.append(name, value);
      } else if (input.value !== "" && parameter.in === "query") query.set(parameter.name, input.value);
      else if (input.value !== "") headers[parameter.name] = input.value;
    }
    const url = new URL("." + target + (query.size ? "?" + query : ""), document.baseURI);
    const sent = area && area.value !== "" ? area.value : undefined;
    if (sent !== undefined) headers["Content-Type"] = type ? type.value || "application/octet-stream" : media;
    return { url, headers, sent };
  };
  const quoted = (word) => "'" + word.replace(/'/g, "'\\''") + "'";
  const needsKey = () => (operation.security || described.security || []).length > 0;
  const write = () => {
    const { url, headers, sent } = request();
    const parts = ["curl" + (method === "get" ? "" : method === "head" ? " -I" : " -X " + method.toUpperCase()) + " " + quoted(url.href)];
    if (needsKey()) parts.push('-H "Authorization: Bearer $KEY"');
    for (const [name, value] of Object.entries(headers)) parts.push("-H " + quoted(name + ": " + value));
    if (sent !== undefined) parts.push("--data-raw " + quoted(sent));
    curl.textContent = parts.join(" \\\n  ");
  };
  let running = null;
  const stop = el("button", { type: "button", hidden: true, onclick: () => running && running.abort() }, "Stop");
  const send = async () => {
    // Who sends again has no use for the answer before.
    if (running) running.abort();
    const mine = running = new AbortController();
    stop.hidden = false;
    const { url, headers, sent } = request();
    if (key && needsKey()) headers.Authorization = "Bearer " + key;
    const begun = performance.now();
    result.replaceChildren(el("p", { class: "quiet" }, "…"));
    const showing = (...children) => { if (running === mine) result.replaceChildren(...children); };
    try {
      const response = await fetch(url, { method: method.toUpperCase(), headers, body: sent, credentials: "omit", cache: "no-store", signal: mine.signal });
      const type = response.headers.get("content-type") || "";
      const head = el("p", { class: response.ok ? "good" : "bad" });
      const told = () => { head.textContent = response.status + " " + response.statusText + " in " + Math.round(performance.now() - begun) + " ms"; };
      const body = el("pre", { tabindex: 0 });
      told();
      // A stream is shown as it comes.
      const come = () => showing(head,
        el("details", {}, el("summary", {}, "Headers"), el("pre", { tabindex: 0 }, [...response.headers].map(([name, value]) => name + ": " + value).join("\n"))),
        body);
      const words = /json|text|^$/.test(type);
      const stream = type.includes("event-stream");
      const { answer, bytes, ended } = await read(response, mine, (so_far) => { if (stream) { body.textContent = so_far; told(); if (!body.isConnected) come(); } });
      let shown = words ? answer : bytes + (ended === "cut" ? " bytes and more of " : " bytes of ") + type;
      if (type.includes("json") && ended === "whole") try { shown = folded(JSON.stringify(JSON.parse(answer), null, 2)); } catch { /* It is shown as it came. */ }
      if (shown.length > SHOWN) shown = shown.slice(0, SHOWN) + "\n…";
      else if (words && ended !== "whole") shown += ended === "cut" ? "\n… the rest is not shown" : "\n… stopped";
      body.textContent = shown;
      told();
      come();
    } catch (error) {
      showing(el("p", { class: "bad" }, mine.signal.aborted ? "Stopped." : "No answer: " + error.message));
    } finally {
      if (running === mine) { running = null; stop.hidden = true; }
    }
  };
  const copy = el("button", { type: "button", onclick: async () => {
    try { await navigator.clipboard.writeText(curl.textContent); copy.textContent = "Copied"; }
    catch { getSelection().selectAllChildren(curl); copy.textContent = "Selected"; }
    setTimeout(() => { copy.textContent = "Copy"; }, 2000);
  } }, "Copy");
  const asked = (some) => some.map(([parameter, input]) => el("label", {}, parameter.name, input));
  const more = inputs.filter(([parameter]) => !parameter.required && parameter.in === "header");
  const form = el("form", { class: "try", oninput: write, onsubmit: (event) => { event.preventDefault(); send(); } },
    el("h4", {}, "Try it"),
    asked(inputs.filter(([parameter]) => parameter.required || parameter.in !== "header")),
    more.length ? el("details", {}, el("summary", {}, "Headers"), el("div", { class: "try-more" }, asked(more))) : null,
    area ? el("label", {}, media, area) : null,
    type ? el("label", {}, "Content-Type", type) : null,
    el("div", { class: "row" }, el("button", { class: "first" }, "Send"), stop, copy, el("span", { class: "quiet" }, "the command")),
    curl, result);
  write();
  return form;
}

function show() {
  const { info, tags = [], paths } = described;
  document.title = info.title + " API";
  byId("title").textContent = info.title + " " + info.version;
  byId("about").replaceChildren(...words([info.summary, info.description].filter(Boolean).join("\n\n")));
  const groups = new Map(tags.map((tag) => [tag.name, { text: tag.description, operations: [] }]));
  for (const [path, item] of Object.entries(paths)) {
    for (const method of METHODS.filter((method) => item[method])) {
      const name = (item[method].tags || ["Other"])[0];
      if (!groups.has(name)) groups.set(name, { text: "", operations: [] });
      groups.get(name).operations.push([path, method, item[method]]);
    }
  }
  const sections = [...groups].map(([name, group], number) => el("section", { id: "group-" + number, "aria-label": name },
    el("h2", {}, name), words(group.text), group.operations.map((operation) => showOperation(...operation))));
  byId("operations").replaceChildren(...sections);
  byId("groups").replaceChildren(...[...groups.keys()].map((name, number) => el("li", {}, el("a", { href: "#group-" + number }, name))));
  const models = info["x-outrigger-models"];
  byId("models").hidden = !models;
  if (models) {
    byId("models-note").textContent = models.described.length + " of " + models.total + " are shown";
    byId("more").hidden = !models.next;
  }
  byId("access").hidden = !isKeyed();
  // A browser would follow it without the key.
  byId("raw").hidden = (described.security || []).length > 0;
  filter();
  let wanted = null;
  try { wanted = location.hash && byId(decodeURIComponent(location.hash.slice(1))); } catch { /* It is no name. */ }
  if (wanted && wanted.tagName === "DETAILS") { wanted.open = true; wanted.scrollIntoView(); }
}

function filter() {
  const wanted = byId("filter").value.trim().toLowerCase();
  for (const section of byId("operations").children) {
    let any = false;
    for (const operation of section.querySelectorAll("details.operation")) {
      operation.hidden = !operation.querySelector("summary").textContent.toLowerCase().includes(wanted);
      any ||= !operation.hidden;
    }
    section.hidden = !any;
  }
}

function say(words, bad) {
  byId("state").textContent = words;
  byId("state").className = bad ? "bad" : "";
}

/** Takes away what was described: who asks next may not know of it. */
function empty() {
  described = null;
  for (const name of ["operations", "groups", "about"]) byId(name).replaceChildren();
  for (const name of ["models", "raw"]) byId(name).hidden = true;
  byId("title").textContent = document.title = "API";
}

let loads = 0;

async function load(query) {
  const mine = ++loads;
  empty();
  say("Loading…");
  const headers = key ? { Authorization: "Bearer " + key } : {};
  try {
    const response = await fetch("openapi.json" + (query || ""), { headers, credentials: "omit", cache: "no-store" });
    if (mine !== loads) return;
    if (response.status === 401) return say(key ? "This key is not taken." : "This service asks for a key: enter one above.", Boolean(key));
    const answer = await response.json();
    if (mine !== loads) return;
    if (!response.ok) return say(answer.message || "The description cannot be had: " + response.status, true);
    described = answer;
    show();
    say("");
  } catch (error) {
    if (mine === loads) say("The description cannot be had: " + error.message, true);
  }
}

byId("access").addEventListener("submit", (event) => { event.preventDefault(); key = byId("key").value.trim(); load(); });
byId("models").addEventListener("submit", (event) => {
  event.preventDefault();
  const name = byId("model").value.trim();
  load(name ? "?model=" + encodeURIComponent(name) : "");
});
byId("more").addEventListener("click", () => load("?after=" + encodeURIComponent(described.info["x-outrigger-models"].next)));
byId("filter").addEventListener("input", filter);
load();
