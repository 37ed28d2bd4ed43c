// Shows the registry's OpenAPI document and sends requests. The token stays in `token`: it is written nowhere.
"use strict";

let token = "";
let api = null;
const SHOWN_CHARACTERS = 100000;  // of a stream, its last ones

const byId = (id) => document.getElementById(id);

function make(name, properties = {}, ...children) {
  const element = Object.assign(document.createElement(name), properties);
  element.append(...children);
  return element;
}

// Writes what stands between backticks as code.
function words(text) {
  return (text || "").split("`").map((part, index) => (index % 2 ? make("code", { textContent: part }) : part));
}

function request(path, options = {}) {
  const headers = { ...options.headers };
  if (token) headers.Authorization = `Bearer ${token}`;
  return fetch(path, { ...options, headers, credentials: "omit", cache: "no-store" });
}

function signIn(refused) {
  byId("sign-in").hidden = false;
  byId("refused").replaceChildren(...words(refused));
  byId("token").focus();
}

async function load() {
  let answer;
  try {
    answer = await request("/openapi.json");
  } catch (error) {
    byId("token").value = token;
    signIn(`no answer: ${error.message}. Does the registry run?`);
    return;
  }
  if (!answer.ok) {
    const problem = await answer.json().catch(() => ({}));
    token = "";
    signIn(problem.detail || `refused with ${answer.status}`);
    return;
  }
  byId("sign-in").hidden = true;
  if (api) return;  // another token: what is open and typed stays
  api = await answer.json();
  byId("about").textContent = `${api.info.description} Version ${api.info.version}.`;
  showRoutes();
}

function showRoutes() {
  const sections = new Map();
  for (const [path, methods] of Object.entries(api.paths)) {
    for (const [method, operation] of Object.entries(methods)) {
      const tag = (operation.tags || ["other"])[0];
      if (!sections.has(tag)) sections.set(tag, make("section", {}, make("h2", { textContent: tag })));
      sections.get(tag).append(routeOf(path, method, operation));
    }
  }
  byId("routes").replaceChildren(...sections.values());
}

function routeOf(path, method, operation) {
  const role = operation["x-role"] || "";
  const summary = make(
    "summary",
    {},
    make("span", { className: "method", textContent: method.toUpperCase() }),
    make("code", { textContent: path }),
    ` ${operation.summary || ""}`,
    make("span", { className: "role", textContent: role }),
  );
  const route = make("details", {}, summary);
  route.addEventListener("toggle", () => {
    if (route.open && route.childElementCount === 1) fillRoute(route, path, method, operation);
  });
  return route;
}

function fillRoute(route, path, method, operation) {
  route.append(make("p", {}, ...words(operation.description)));
  const inputs = (operation.parameters || []).map((one) => fieldOf(one, `${method} ${path}`));
  const body = operation.requestBody?.content?.["application/json"]?.schema;
  const text = body ? make("textarea", { spellcheck: false, value: JSON.stringify(exampleOf(body), null, 2) }) : null;
  if (text) text.setAttribute("aria-label", "Body as JSON");
  const output = make("pre", { hidden: true, tabIndex: 0 });
  const status = make("p", { role: "status" });
  const form = make("form", {}, ...inputs.map((one) => one.row));
  if (text) form.append(make("h3", { textContent: "Body" }), ...tablesOf(body), text);
  form.append(make("button", { textContent: "Send" }), status, output);
  let sent = new AbortController();
  route.addEventListener("toggle", () => sent.abort());
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    sent.abort();
    sent = new AbortController();
    send({ path, method, inputs, text, status, output, signal: sent.signal });
  });
  route.append(form, make("h3", { textContent: "Answers" }), ...answersOf(operation));
}

function fieldOf(parameter, place) {
  const id = `${place} ${parameter.in} ${parameter.name}`;
  const input = make("input", { id, required: Boolean(parameter.required), autocomplete: "off" });
  const label = make("label", { htmlFor: id }, make("code", { textContent: parameter.name }));
  const type = make("small", { textContent: `${parameter.in}, ${typeOf(parameter.schema || {})}` });
  const meaning = make("span", {}, ...words(parameter.description));
  return { parameter, input, row: make("div", { className: "field" }, label, input, type, meaning) };
}

async function send({ path, method, inputs, text, status, output, signal }) {
  let address = path;
  const query = new URLSearchParams();
  const headers = {};
  for (const { parameter, input } of inputs) {
    if (input.value === "") continue;
    if (parameter.in === "path") address = address.replace(`{${parameter.name}}`, encodeURIComponent(input.value));
    else if (parameter.in === "query") query.append(parameter.name, input.value);
    else headers[parameter.name] = input.value;
  }
  if (query.size) address += `?${query}`;
  const options = { method: method.toUpperCase(), headers, signal };
  if (text || method === "post") {
    headers["Content-Type"] = "application/json";
    options.body = text ? text.value : "{}";
  }
  status.textContent = "waiting";
  status.className = "";
  output.textContent = "";
  try {
    const answer = await request(address, options);
    status.className = answer.ok ? "ok" : "bad";
    status.textContent = `${answer.status} ${answer.statusText}`;
    const followed = answer.headers.get("Content-Type")?.startsWith("text/event-stream");
    if (followed) {
      await follow(answer, output);
      status.textContent += ", and the stream has ended";
    } else output.textContent = pretty(await answer.text());
    if (answer.status === 401) signIn("The registry does not take this token any more: enter another one.");
  } catch (error) {
    if (signal.aborted) return;
    status.className = "bad";
    status.textContent = `no answer: ${error.message}`;
  }
  output.hidden = output.textContent === "";
}

// Shows a stream as it comes, until another request is sent or the route is closed.
async function follow(answer, output) {
  const reader = answer.body.getReader();
  const decoder = new TextDecoder();
  output.hidden = false;
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    output.textContent = (output.textContent + decoder.decode(value, { stream: true })).slice(-SHOWN_CHARACTERS);
  }
}

function pretty(text) {
  try {
    return JSON.stringify(JSON.parse(text), null, 2);
  } catch {
    return text;
  }
}

function resolved(schema) {
  if (schema?.$ref) return api.components.schemas[schema.$ref.split("/").pop()] || {};
  return schema || {};
}

function typeOf(schema) {
  if (schema.$ref) return resolved(schema).enum ? typeOf(resolved(schema)) : schema.$ref.split("/").pop();
  if (schema.anyOf) return schema.anyOf.map(typeOf).join(" or ");
  if (schema.enum) return schema.enum.join(" | ");
  if (schema.const !== undefined) return JSON.stringify(schema.const);
  return schema.type === "array" ? `list of ${typeOf(schema.items || {})}` : schema.type || "any";
}

// The tables of a document: its fields, then those of each document that is part of it.
function tablesOf(schema) {
  const first = resolved(schema).oneOf || [schema];
  const named = [];
  const add = (part) => {
    const name = part.$ref?.split("/").pop();
    if (name && resolved(part).properties && !named.includes(name)) named.push(name);
    for (const one of [part.items, ...(part.anyOf || []), part.additionalProperties]) {
      if (one && typeof one === "object") add(one);
    }
  };
  first.forEach(add);
  for (const name of named) Object.values(api.components.schemas[name].properties).forEach(add);
  return named.flatMap((name, index) => {
    const title = make("h4", { textContent: name });
    const table = fieldsOf(api.components.schemas[name]);
    return first.length === 1 && index === 0 && first[0].$ref ? [table] : [title, table];
  });
}

function fieldsOf({ properties = {}, required = [] }) {
  const rows = Object.entries(properties).map(([name, part]) => make(
    "tr",
    {},
    make("td", {}, make("code", { textContent: name }), required.includes(name) ? make("small", { textContent: " required" }) : ""),
    make("td", { textContent: typeOf(part) }),
    make("td", {}, ...words(part.description)),
  ));
  const head = make("tr", {}, ...["Field", "Type", "Meaning"].map((name) => make("th", { textContent: name })));
  return make("table", {}, make("thead", {}, head), make("tbody", {}, ...rows));
}

function exampleOf(schema) {
  const shape = resolved(resolved(schema).oneOf?.[0] || schema);
  if (shape.const !== undefined) return shape.const;
  if (shape.enum) return shape.enum[0];
  if (shape.type === "array") return [exampleOf(shape.items || {})];
  if (shape.type === "object") {
    return Object.fromEntries((shape.required || []).map((name) => [name, exampleOf(shape.properties[name])]));
  }
  return shape.type === "string" ? "" : shape.minimum || 0;
}

function answersOf(operation) {
  const rows = Object.entries(operation.responses).map(([status, answer]) => make(
    "tr", {}, make("td", { textContent: status }), make("td", { textContent: answer.description }),
  ));
  const [, given] = Object.entries(operation.responses).find(([status]) => status < "300") || [];
  const schema = given?.content?.["application/json"]?.schema;
  const tables = schema ? tablesOf(schema) : [];
  const fields = make("details", { className: "fields" }, make("summary", { textContent: "Fields of the answer" }), ...tables);
  return [make("table", {}, make("tbody", {}, ...rows)), ...(tables.length ? [fields] : [])];
}

byId("sign-in").addEventListener("submit", (event) => {
  event.preventDefault();
  token = byId("token").value.trim();
  byId("token").value = "";
  load();
});

if (document.documentElement.dataset.auth === "on") signIn("");
else load();
