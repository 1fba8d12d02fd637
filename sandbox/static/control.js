// Keeps the live parts of the control page as they are now, by reading the page again.
// What somebody is using stays: the focus, a choice being made and not sent yet, a text being marked.

const PAUSE = 2000;
const QUIET = 10000; // between two announcements to those who listen
let announced = 0;

const isChosenFrom = (part) => part.contains(document.activeElement) && document.activeElement.matches("select, input");
const isUnsent = (part) =>
  [...part.querySelectorAll("input")].some((field) => field.checked !== field.defaultChecked || field.value !== field.defaultValue) ||
  [...part.querySelectorAll("select")].some((field) => field.value !== (field.querySelector("[selected]") ?? field.options[0]).value);
const isMarked = (part) => !getSelection().isCollapsed && getSelection().containsNode(part, true);
const isTooSoon = (part) => part.id === "summary" && Date.now() - announced < QUIET;

function renew(part, fresh) {
  if (!fresh || fresh.innerHTML === part.innerHTML || isChosenFrom(part) || isUnsent(part) || isMarked(part) || isTooSoon(part)) return;
  if (part.id === "summary") announced = Date.now();
  const focused = part.contains(document.activeElement) && document.activeElement.id;
  part.replaceChildren(...fresh.childNodes);
  if (focused) document.getElementById(focused)?.focus({ preventScroll: true });
}

async function refresh() {
  if (document.hidden) return;
  const lost = document.getElementById("lost");
  try {
    const answer = await fetch("/" + location.search, { signal: AbortSignal.timeout(10000) });
    const now = new DOMParser().parseFromString(await answer.text(), "text/html");
    for (const part of document.querySelectorAll("[data-live]")) renew(part, now.getElementById(part.id));
    if (lost.textContent) lost.textContent = "";
  } catch {
    lost.textContent ||= "The sandbox does not answer: this is how it was.";
  }
}

(async function () {
  for (;;) {
    await new Promise((done) => setTimeout(done, PAUSE));
    await refresh();
  }
})();
