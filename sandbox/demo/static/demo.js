// Acme Notes in the browser. `billing` is how a product's frontend asks the service; the rest shows what it says.

const $ = (id) => document.getElementById(id);
const main = $("main");
const control = document.body.dataset.control;
const decimals = JSON.parse(document.body.dataset.decimals); // of a currency, where they are not two
const seconds = (number) => new Promise((wake) => setTimeout(wake, number * 1000));
const json = { "Content-Type": "application/json" };

let token = "";
let held = null; // the document shown
let plans = [];
let feedAfter = "";

if (main) start();

async function start() {
  main.hidden = false;
  token = (await insist("/demo/session")).token;
  plans = (await insist("/api/plans")).plans;
  for (const line of document.querySelectorAll("[data-line]")) makeLine(line);
  showWorkspace(await insist("/demo/workspace"));
  every(2, showFacts);
  every(3, showFeed);
  const returned = new URLSearchParams(location.search);
  if (returned.get("checkout")) await welcomeBack(returned.get("checkout"));
  else while (!(await look(returned.get("billing") === "updated"))) await seconds(2);
  every(2, () => look(false));
}

function every(pause, task) {
  (async () => {
    for (;;) {
      if (!document.hidden) await task().catch(() => {}); // the service is away; the next turn will tell
      await seconds(pause);
    }
  })();
}

// ---- the service

const billing = (path, options) => ask(`/api${path}`, options);

// Always an answer: status 0 and a sentence, where there is no network, no service, or a proxy in its place.
async function ask(path, options = {}) {
  const headers = { Authorization: `Bearer ${token}`, ...json };
  try {
    const answer = await fetch(path, { cache: "no-cache", ...options, headers });
    return { status: answer.status, headers: answer.headers, body: await answer.json() };
  } catch {
    return { status: 0, headers: new Headers(), body: { error: "The service does not answer just now" } };
  }
}

// For what there is no page without.
async function insist(path) {
  for (;;) {
    const { status, body } = await ask(path);
    say($("trouble"), status === 200 ? "" : `${body.error}. Trying again…`);
    if (status === 200) return body;
    await seconds(2);
  }
}

function say(place, words) {
  if (place.textContent !== words) place.textContent = words; // what is said again is not read out again
}

// Until then the address tells of the return, and a reload is another one.
function arrived() {
  history.replaceState(null, "", "/demo");
}

async function look(sync) {
  const { status, headers, body } = await billing(sync ? "/entitlements?sync=true" : "/entitlements");
  if (status === 200) show(body);
  else $("state").textContent = `${body.error}.`;
  if (sync && status === 200) {
    const done = headers.get("Billing-Sync") !== "failed";
    $("news").textContent = done ? "Welcome back. This is how it stands at Stripe now." : "Welcome back. Stripe does not answer; this was last known.";
    if (done) arrived();
  }
  return status === 200;
}

// The browser may be back before Stripe's webhook is here: ask how the session stands, not the document.
async function welcomeBack(session) {
  say($("news"), "Welcome back. Asking how your purchase stands…");
  look(false);
  let until = Date.now() + 60_000;
  while (Date.now() < until) {
    const { status, headers, body } = await billing(`/subscriptions/checkout/${encodeURIComponent(session)}`);
    if (body.status === "complete") {
      show(body.entitlements);
      say($("news"), `Welcome back. You have ${planWords(held)}.`);
      return arrived();
    }
    if (body.status === "expired" || status === 404) {
      say($("news"), "Nothing came of that Checkout. The plans are still here.");
      return arrived();
    }
    if (body.status === "processing") say($("news"), "The payment is on its way. This can take a while.");
    if (body.status === "open") say($("news"), "Nobody has paid yet.");
    if (status !== 200) {
      say($("news"), `Welcome back. ${body.error}; asking again how your purchase stands…`);
      until = Date.now() + 60_000; // a minute of answers
    }
    await seconds(Number(headers.get("Retry-After")) || 2);
  }
  say($("news"), "Still on its way. This page shows it when it is here.");
}

async function goTo(path, wish, button) {
  button.disabled = true;
  $("trouble").textContent = "";
  const { status, body } = await billing(path, { method: "POST", body: JSON.stringify(wish) });
  if (status === 200) return location.assign(body.url);
  button.disabled = false;
  $("trouble").textContent = status === 404 && !body.code ? "There is nothing to manage yet: choose a plan first." : `${body.error}.`;
}

// ---- the plan, in words

const date = (text) => new Date(text).toLocaleDateString("en-GB", { dateStyle: "long" });

function planOf(document) {
  return plans.find((plan) => plan.plan === document.plan);
}

function planName(document) {
  const name = planOf(document)?.product ?? document.plan ?? "No plan";
  return name.charAt(0).toUpperCase() + name.slice(1);
}

function planWords(document) {
  const seats = planOf(document)?.per_seat ? `, ${document.quantity} ${document.quantity === 1 ? "seat" : "seats"}` : "";
  return planName(document) + seats;
}

function stateWords(document) {
  if (document.state === "none") return "";
  if (document.state === "trialing") return `on trial until ${date(document.trial_end)}`;
  if (document.state === "pending") return "waiting for the first payment";
  if (document.state === "suspended") return "suspended";
  if (document.state === "grace") return "payment failed";
  if (document.cancel_at) return `ends on ${date(document.cancel_at)}`;
  return document.current_period_end ? `renews on ${date(document.current_period_end)}` : "";
}

function adviceWords(document) {
  const card = "Update your card";
  if (document.state === "grace" && document.grace_until) return `The last payment failed. ${card} before ${date(document.grace_until)} to keep the plan.`;
  if (document.state === "grace") return `The last payment failed. ${card} to keep the plan.`;
  if (document.state === "suspended") return `The plan is suspended until somebody pays. ${card}, or pay the open invoice.`;
  if (document.state === "pending") return "The first payment is not through. Choose a plan again to start over.";
  if (document.state === "trialing" && document.cancel_at) return `The trial ends on ${date(document.cancel_at)}, and the plan with it.`;
  if (document.cancel_at) return "You can take that back under Manage billing.";
  return "";
}

function show(document) {
  const before = held;
  if (before && document.tenant_id === before.tenant_id && document.version < before.version) return; // an older answer
  held = document;
  $("plan").textContent = planWords(document);
  $("state").textContent = stateWords(document) + (document.stale ? " (news may be late)" : "");
  const advice = adviceWords(document);
  const ofCard = document.state === "grace" || document.state === "suspended";
  if ($("advice").dataset.said !== advice) {
    $("advice").dataset.said = advice;
    $("advice").replaceChildren(advice, ...(ofCard ? [" ", flowButton("Update card", "payment_method_update")] : []));
  }
  $("advice").hidden = !advice;
  const buys = ["none", "pending"].includes(document.state);
  $("billing").hidden = buys;
  $("billing").querySelector('[data-flow="seat"]').hidden = !planOf(document)?.per_seat;
  $("billing").querySelector('[data-flow="subscription_cancel"]').hidden = Boolean(document.cancel_at);
  showShop(buys);
  showLimits(document);
  showDocument(document, before);
  if (!before || before.stripe?.subscription !== document.stripe?.subscription) {
    for (const line of window.document.querySelectorAll('[data-line="end"]')) makeLine(line);
  }
}

function flowButton(words, flow) {
  const button = document.createElement("button");
  button.type = "button";
  button.className = "small";
  button.textContent = words;
  button.dataset.flow = flow;
  return button;
}

document.addEventListener("click", (event) => {
  const button = event.target.closest("[data-flow]");
  if (!button) return;
  const flow = button.dataset.flow;
  if (flow === "") goTo("/subscriptions/portal", { return_url: "/demo?billing=updated" }, button);
  else if (flow === "seat") goTo("/subscriptions/portal", { flow: "subscription_update_confirm", quantity: held.quantity + 1 }, button);
  else goTo("/subscriptions/portal", { flow }, button);
});

// ---- the shop

function priceOf(plan) {
  if (plan.amount === null) return "";
  const digits = decimals[plan.currency] ?? 2; // as Stripe counts; Intl has a list of its own
  const money = new Intl.NumberFormat("en", { style: "currency", currency: plan.currency, minimumFractionDigits: digits, maximumFractionDigits: digits });
  const length = plan.interval_count === 1 ? plan.interval : `${plan.interval_count} ${plan.interval}s`;
  return `${money.format(plan.amount / 10 ** digits)} ${plan.per_seat ? "per seat and " : "per "}${length}`;
}

function featureWords([name, feature]) {
  const words = name.replaceAll("_", " ");
  if (!feature.enabled) return null;
  if (!("limit" in feature)) return words === "sso" ? "single sign-on" : words;
  return feature.limit === null ? `${words} without end` : `${feature.limit} ${words}`;
}

function showShop(buys) {
  $("shop").hidden = !buys;
  $("shop-empty").hidden = plans.length > 0;
  if (!buys || $("plans").childElementCount) return;
  $("plans").replaceChildren(...plans.map(planCard));
}

function planCard(plan) {
  const form = document.createElement("form");
  form.className = "card";
  const heading = document.createElement("h3");
  heading.textContent = `${plan.product}, by the ${plan.interval}`;
  const price = document.createElement("p");
  price.className = "price quiet";
  price.textContent = priceOf(plan) + (plan.trial_days ? `, ${plan.trial_days} days free` : "");
  const list = document.createElement("ul");
  const given = Object.entries(plan.features).map(featureWords).filter(Boolean);
  list.append(...given.map((words) => line(plan.per_seat && /^\d/.test(words) ? `${words} per seat` : words)));
  const field = document.createElement("p");
  field.className = "field";
  if (plan.per_seat) {
    const label = document.createElement("label");
    const input = document.createElement("input");
    Object.assign(input, { type: "number", name: "seats", id: `seats-${plan.plan}`, min: plan.min_quantity, max: 1000, value: Math.max(5, plan.min_quantity), required: true });
    label.htmlFor = input.id;
    label.textContent = "Seats";
    field.append(label, input);
  }
  const button = document.createElement("button");
  button.className = "main";
  button.textContent = plan.trial_days ? "Start the trial" : "Upgrade";
  button.setAttribute("aria-label", `${button.textContent}: ${heading.textContent}`);
  field.append(button);
  form.append(heading, price, list, field);
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    const quantity = plan.per_seat ? { quantity: Number(form.seats.value) } : {};
    goTo("/subscriptions/checkout", { plan: plan.plan, ...quantity, return_url: "/demo" }, button);
  });
  return form;
}

// ---- what the plan limits: decided by the product's backend, shown here

function showLimits(document) {
  const sso = document.features.sso;
  $("sso").disabled = !sso?.enabled;
  if (!sso?.enabled) $("sso").setAttribute("aria-checked", "false");
  $("sso-words").textContent = sso?.enabled ? "Members may sign in through your company." : "Not in your plan.";
  showRoom();
}

function showRoom() {
  const notes = held?.features.notes;
  const count = $("notes").childElementCount;
  const room = notes === undefined ? "the catalogue has no limit.notes; here it is 3" : notes.limit === null ? "without end" : `${notes.limit}`;
  $("room").textContent = held ? `${count} of ${room}` : "";
}

function showWorkspace(workspace) {
  $("notes").replaceChildren(...workspace.notes.map(noteLine));
  $("sso").setAttribute("aria-checked", String(workspace.sso && !$("sso").disabled));
  showRoom();
}

function noteLine(note) {
  const item = line(note.text);
  const button = document.createElement("button");
  button.type = "button";
  button.className = "small";
  button.textContent = "Delete";
  button.setAttribute("aria-label", `Delete ${note.text}`);
  button.addEventListener("click", async () => {
    await workspace(`/notes/${note.id}`, "DELETE");
    $("text").focus();
  });
  item.append(button);
  return item;
}

async function workspace(path, method, body) {
  const { status, body: told } = await ask(`/demo/workspace${path}`, { method, body: body && JSON.stringify(body) });
  const isDone = status === 200 || status === 201;
  $("refusal").textContent = isDone ? "" : `${told.error}.${told.code === "limit_reached" ? " Upgrade for more." : ""}`;
  if (isDone) showWorkspace(told);
  return isDone;
}

$("write")?.addEventListener("submit", async (event) => {
  event.preventDefault();
  const text = $("text").value;
  const isKept = await workspace("/notes", "POST", { text });
  if (isKept && $("text").value === text) $("text").value = ""; // and not what was written meanwhile
});

$("sso")?.addEventListener("click", () => workspace("/sso", "PUT", { on: $("sso").getAttribute("aria-checked") !== "true" }));

// ---- behind the scenes

function line(text) {
  const item = document.createElement("li");
  item.append(text);
  return item;
}

function showDocument(shown, before) {
  const known = new Set(before ? JSON.stringify(before, null, 2).split("\n") : []);
  const changed = before && before.version !== shown.version;
  if (before && !changed && before.as_of === shown.as_of && before.stale === shown.stale) return;
  $("version").textContent = `version ${shown.version}`;
  const lines = JSON.stringify(shown, null, 2).split("\n");
  $("document").replaceChildren(
    ...lines.flatMap((text) => {
      if (!changed || known.has(text)) return [`${text}\n`];
      const mark = document.createElement("mark");
      mark.textContent = text;
      return [mark, "\n"];
    }),
  );
  if (changed) {
    $("version").classList.remove("changed");
    requestAnimationFrame(() => $("version").classList.add("changed"));
  }
}

const clock = (at) => new Date(typeof at === "number" ? at * 1000 : at).toLocaleTimeString("en-GB");

function timed(at, words) {
  const item = document.createElement("li");
  const time = document.createElement("time");
  time.textContent = clock(at);
  const span = document.createElement("span");
  span.textContent = words;
  item.append(time, span);
  return item;
}

const SOURCES = { return: "from the return", webhook: "from the webhook", either: "from return or webhook" };

function raceWords(race) {
  if (!race?.returned) return "Buy a plan, and see who is faster: the browser that comes back from Checkout, or Stripe’s webhook.";
  if (!race.answered) return "The browser is back; the service is asking Stripe.";
  const apart = race.webhook && `${Math.abs(race.webhook.at - race.answered).toFixed(1)} s`;
  if (race.came_from === "return" && !race.webhook) return `Document v${race.version} came from the return: the service asked Stripe itself. No webhook has arrived yet.`;
  if (race.came_from === "return") return `Document v${race.version} came from the return: the service asked Stripe itself. The webhook arrived ${apart} later.`;
  const hint = control ? " Have webhooks delayed on the control page to see it the other way round." : "";
  if (race.came_from === "webhook") return `The webhook was faster: it arrived before the browser was back.${hint}`;
  return "Both came at once. Whichever it was, the document is the same.";
}

async function showFacts() {
  const { race, arrivals } = await (await fetch("/demo/facts")).json();
  const moments = [];
  if (race?.left) moments.push([race.left, "left for Checkout"]);
  if (race?.returned) moments.push([race.returned, "returned"]);
  if (race?.returned && race.answered) moments.push([race.answered, `document v${race.version}, ${SOURCES[race.came_from]}`, true]);
  if (race?.returned && race.webhook) moments.push([race.webhook.at, `webhook arrived: ${race.webhook.type}`]);
  moments.sort((one, other) => one[0] - other[0]);
  const said = JSON.stringify([moments, arrivals.map((arrival) => arrival.event)]);
  if ($("race").dataset.said === said) return;
  $("race").dataset.said = said;
  $("race-words").textContent = raceWords(race);
  $("race").replaceChildren(
    ...moments.map(([at, words, isMark]) => {
      const item = timed(at, words);
      item.classList.toggle("mark", Boolean(isMark));
      return item;
    }),
  );
  $("arrivals").replaceChildren(...arrivals.map((a) => timed(a.at, ` ${a.type} → ${a.status}`)));
}

const NO_FEED = {
  none: "This version of the service has no feed yet.",
  "no token": "There is no feed yet, or no service token to read it with.",
  refused: "The service token is not taken any more: stop `make run` and start it again.",
  away: "The feed does not answer just now.",
};

async function showFeed() {
  const answer = await (await fetch(`/demo/changes?after=${encodeURIComponent(feedAfter)}`)).json();
  $("feed-words").textContent = NO_FEED[answer.feed] ?? "Each change of any tenant’s document, as another service reads it.";
  for (const change of answer.changes ?? []) {
    feedAfter = change.id;
    const what = change.method === "DELETE" ? "forgotten" : `v${change.version} ${change.plan ?? "no plan"}${change.quantity ? ` × ${change.quantity}` : ""}, ${change.state}`;
    $("feed").prepend(timed(change.time, ` ${change.subject}: ${what}`));
  }
  while ($("feed").childElementCount > 8) $("feed").lastElementChild.remove();
}

// ---- lines to paste

function command(name) {
  const bearer = `-H "Authorization: Bearer ${token}"`;
  const subscription = held?.stripe?.subscription;
  const stripe = new URL(control || location.origin).origin;
  return {
    entitlements: `curl ${location.origin}/api/entitlements ${bearer}`,
    plans: `curl ${location.origin}/api/plans`,
    portal: `curl -X POST ${location.origin}/api/subscriptions/portal ${bearer}`,
    changes: `curl ${location.origin}/api/changes -H "Authorization: Bearer $BILLING_TOKEN"`,
    end: subscription ? `curl -X DELETE ${stripe}/v1/subscriptions/${subscription} -u sk_test_sandbox:` : "# buy a plan first",
    reconcile: "make billing ARGS=reconcile",
  }[name];
}

function makeLine(place) {
  const text = document.createElement("pre");
  text.tabIndex = 0;
  text.textContent = command(place.dataset.line);
  const copy = document.createElement("button");
  copy.type = "button";
  copy.className = "small";
  copy.textContent = "Copy";
  copy.setAttribute("aria-label", `Copy: ${text.textContent.slice(0, 60)}`);
  copy.addEventListener("click", async () => {
    await navigator.clipboard.writeText(text.textContent).then(
      () => (copy.textContent = "Copied"),
      () => getSelection().selectAllChildren(text), // where the browser does not let us, the reader can
    );
    setTimeout(() => (copy.textContent = "Copy"), 2000);
  });
  place.replaceChildren(text, copy);
}
