// Shows the registry's OpenAPI document and sends requests. The token stays in `token`: it is written nowhere.
"use strict";

let token = "";
let api = null;

const byId = (id) => document.getElementById(id);

function make(name, properties = {}, ...children) {
  const element = Object.assign(document.createElement(name), properties);
  element.append(...children);
  return element;
}

function request(path, options = {}) {
  const headers = { ...options.headers };
  if (token) headers.Authorization = `Bearer ${token}`;
  return fetch(path, { ...options, headers, credentials: "omit", cache: "no-store" });
}

async function load() {
  const answer = await request("/openapi.json");
  if (!answer.ok) {
    const problem = await answer.json().catch(() => ({}));
    byId("sign-in").hidden = false;
    byId("refused").textContent = token ? problem.detail || `refused with ${answer.status}` : "";
    token = "";
    byId("token").focus();
    return;
  }
  api = await answer.json();
  byId("sign-in").hidden = true;
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
  route.append(make("p", { textContent: operation.description || "" }));
  const inputs = (operation.parameters || []).map((one) => fieldOf(one, `${method} ${path}`));
  const body = operation.requestBody?.content?.["application/json"]?.schema;
  const text = body ? make("textarea", { spellcheck: false, value: exampleOf(body) }) : null;
  if (text) text.setAttribute("aria-label", "Body as JSON");
  const output = make("pre", { hidden: true, tabIndex: 0 });
  const status = make("p", { role: "status" });
  const form = make("form", {}, ...inputs.map((one) => one.row));
  if (text) form.append(make("h3", { textContent: "Body" }), ...tableOf(body), text);
  form.append(make("button", { textContent: "Send" }), status, output);
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    send({ path, method, inputs, text, status, output });
  });
  route.append(form, make("h3", { textContent: "Answers" }), answersOf(operation));
}

function fieldOf(parameter, place) {
  const id = `${place} ${parameter.in} ${parameter.name}`;
  const input = make("input", { id, required: Boolean(parameter.required), autocomplete: "off" });
  const label = make("label", { htmlFor: id }, make("code", { textContent: parameter.name }));
  const note = ` ${parameter.in}; ${parameter.description || ""} `;
  return { parameter, input, row: make("div", { className: "field" }, label, note, input) };
}

async function send({ path, method, inputs, text, status, output }) {
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
  const options = { method: method.toUpperCase(), headers };
  if (text || method === "post") {
    headers["Content-Type"] = "application/json";
    options.body = text ? text.value : "{}";
  }
  status.textContent = "waiting";
  status.className = "";
  try {
    const answer = await request(address, options);
    status.className = answer.ok ? "ok" : "bad";
    status.textContent = `${answer.status} ${answer.statusText}`;
    output.textContent = address.startsWith("/v1/events") && answer.ok ? await firstPart(answer) : pretty(await answer.text());
  } catch (error) {
    status.className = "bad";
    status.textContent = `no answer: ${error.message}`;
    output.textContent = "";
  }
  output.hidden = output.textContent === "";
}

async function firstPart(answer) {
  const reader = answer.body.getReader();
  const { value } = await reader.read();
  await reader.cancel();
  return new TextDecoder().decode(value);
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
  if (schema.$ref) return schema.$ref.split("/").pop();
  if (schema.anyOf) return schema.anyOf.map(typeOf).join(" or ");
  if (schema.enum) return schema.enum.join(" | ");
  if (schema.const !== undefined) return JSON.stringify(schema.const);
  return schema.type === "array" ? `list of ${typeOf(schema.items || {})}` : schema.type || "any";
}

function tableOf(schema) {
  const choices = resolved(schema).oneOf || [schema];
  return choices.map((one) => {
    const { properties = {}, required = [] } = resolved(one);
    const rows = Object.entries(properties).map(([name, part]) => make(
      "tr",
      {},
      make("td", {}, make("code", { textContent: name }), required.includes(name) ? " *" : ""),
      make("td", { textContent: typeOf(part) }),
      make("td", { textContent: part.description || "" }),
    ));
    const head = make("tr", {}, ...["Field", "Type", "Meaning"].map((name) => make("th", { textContent: name })));
    return make("table", {}, make("thead", {}, head), make("tbody", {}, ...rows));
  });
}

function exampleOf(schema) {
  const { properties = {}, required = [] } = resolved(resolved(schema).oneOf?.[0] || schema);
  const shown = required.map((name) => [name, properties[name]?.const ?? properties[name]?.enum?.[0] ?? ""]);
  return JSON.stringify(Object.fromEntries(shown), null, 2);
}

function answersOf(operation) {
  const rows = Object.entries(operation.responses).map(([status, answer]) => make(
    "tr", {}, make("td", { textContent: status }), make("td", { textContent: answer.description }),
  ));
  return make("table", {}, make("tbody", {}, ...rows));
}

byId("sign-in").addEventListener("submit", (event) => {
  event.preventDefault();
  token = byId("token").value.trim();
  byId("token").value = "";
  load();
});

load();
