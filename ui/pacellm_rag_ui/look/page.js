// The page's own behaviour: what Python's events do not do. No library, nothing fetched from
// anywhere but this server. Text of files, people and models is set as text, never as HTML.
(() => {
  "use strict";
  const page = (window.pacellm = window.pacellm || {});
  const $ = (selector) => document.querySelector(selector);

  // Python's side of the bridge puts the function there once it is mounted.
  const send = (event, data) => window.pacellmTrigger && window.pacellmTrigger(event, data);

  const make = (tag, properties = {}, ...children) => {
    const element = Object.assign(document.createElement(tag), properties);
    element.append(...children);
    return element;
  };

  // ------------------------------------------------------------------ dialogs

  // Resolves to the fields' values, or to null where it was closed.
  const ask = (title, fields, ok, danger = false) =>
    new Promise((resolve) => {
      const form = make("form", { method: "dialog" });
      const inputs = {};
      for (const [name, field] of Object.entries(fields)) {
        const input = make(field.lines ? "textarea" : "input", { value: field.value || "" });
        if (field.lines) input.rows = field.lines;
        else input.type = field.type || "text";
        for (const key of ["min", "max"]) if (field[key]) input[key] = field[key];
        inputs[name] = input;
        form.append(make("label", {}, make("span", { textContent: field.label }), input));
      }
      const yes = make("button", { value: "yes", textContent: ok, className: "act " + (danger ? "danger solid" : "primary") });
      const no = make("button", { value: "no", textContent: "Cancel", className: "act soft", type: "button" });
      const dialog = make("dialog", { className: "ask" }, make("h3", { textContent: title }), form);
      form.append(make("div", { className: "buttons" }, no, yes));
      no.addEventListener("click", () => dialog.close("no"));
      dialog.addEventListener("close", () => {
        const values = Object.fromEntries(Object.entries(inputs).map(([k, i]) => [k, i.value]));
        dialog.remove();
        resolve(dialog.returnValue === "yes" ? values : null);
      });
      document.body.append(dialog);
      dialog.showModal();
      const first = Object.values(inputs)[0];
      if (first) first.select();
    });
  page.ask = ask;

  // ------------------------------------------------------------------ actions

  const question = () => $("#question textarea");

  const putQuestion = (text) => {
    const box = question();
    Object.getOwnPropertyDescriptor(HTMLTextAreaElement.prototype, "value").set.call(box, text);
    box.dispatchEvent(new Event("input", { bubbles: true }));
    show("chat");
    box.focus();
  };

  const copy = async (text) => {
    try {
      await navigator.clipboard.writeText(text);
    } catch {
      // not over plain http to another machine
      const box = make("textarea", { value: text });
      document.body.append(box);
      box.select();
      document.execCommand("copy");
      box.remove();
    }
  };

  const show = (pane) => {
    document.body.dataset.pane = pane;
    for (const tab of document.querySelectorAll(".panes button"))
      tab.setAttribute("aria-current", String(tab.dataset.pane === pane));
  };
  page.show = show;

  const local = {
    "choose-files": () => $("#file-input").click(),
    open: (data) => page.viewer.open(data.id, 1, ""),
    pane: (data) => show(data.pane),
    "use-question": (data, element) => putQuestion(element.textContent),
    dismiss: (data, element) => element.closest("li").remove(),
    copy: async (data, element) => {
      await copy(element.closest(".turn").querySelector(".prose")?.innerText || "");
      element.classList.add("did");
      setTimeout(() => element.classList.remove("did"), 1200);
    },
    edit: async (data, element) => {
      const value = element.closest(".turn").querySelector(".said").innerText;
      const field = { label: "Answers after it are replaced.", value, lines: 5 };
      const answer = await ask("Edit the question", { text: field }, "Ask again");
      if (answer && answer.text.trim()) send("retry", { kind: "edit", turn: data.turn, question: answer.text });
    },
    rename: async (data) => {
      const answer = await ask("Rename the conversation", { title: { label: "Title", value: data.title } }, "Rename");
      if (answer) send("conversation", { kind: "rename", id: data.id, title: answer.title });
    },
    pages: async (data) => {
      const [first, last] = (data.range || `1-${data.last}`).split("-");
      const limits = { type: "number", min: "1", max: data.last };
      const answer = await ask(
        `Pages to read, of ${data.last}`,
        { first: { label: "From page", value: first, ...limits }, last: { label: "To page", value: last, ...limits } },
        "Keep these pages",
      );
      if (answer) send("document", { kind: "pages", id: data.id, range: `${answer.first}-${answer.last}` });
    },
    theme: () => {
      const dark = document.body.classList.toggle("dark");
      localStorage.setItem("pacellm-theme", dark ? "dark" : "light");
    },
  };

  const act = async (element) => {
    const { act: event, confirm, ...data } = element.dataset;
    element.closest("details.menu")?.removeAttribute("open");
    if (confirm && !(await ask(confirm, {}, element.textContent.trim() || "Delete", true))) return;
    if (event === "local") await local[data.kind]?.(data, element);
    else send(event, data);
  };

  // ------------------------------------------------------------------ the source that is shown

  // Parts of the page are drawn anew, so what was clicked is found again by what it is. An answer
  // gets its turn's id when it is stored; the same source may stand in several.
  let current = null;
  const placeOf = (chip) => ({
    href: chip.getAttribute("href"),
    turn: chip.closest("[data-turn]")?.dataset.turn,
    within: chip.closest("#history, #aside, #every, #compare")?.id,
  });
  const chipsLike = (place) =>
    [...document.querySelectorAll("a.cite")].filter((chip) => {
      const its = placeOf(chip);
      return its.href === place.href && its.turn === place.turn && its.within === place.within;
    });
  const markCurrent = () => {
    const now = current && chipsLike(current)[current.at];
    for (const chip of document.querySelectorAll("a.cite.current")) {
      if (chip === now) continue;
      chip.classList.remove("current");
      chip.removeAttribute("aria-current");
    }
    if (!now || now.classList.contains("current")) return;
    now.classList.add("current");
    now.setAttribute("aria-current", "true");
  };
  page.unmark = () => {
    current = null;
    markCurrent();
  };

  document.addEventListener("click", (event) => {
    const cite = event.target.closest('a[href^="#cite/"]');
    if (cite) {
      event.preventDefault();
      const [, id, number] = cite.getAttribute("href").split("/");
      const quote = cite.closest("[data-quote]")?.dataset.quote || "";
      const place = placeOf(cite);
      current = { ...place, at: chipsLike(place).indexOf(cite) };
      markCurrent();
      page.viewer.open(id, Number(number), quote);
      return;
    }
    const button = event.target.closest("button[data-act]");
    if (button) act(button);
    const asked = event.target.closest(".ask-row button");
    if (asked) {
      page.toEnd?.();
      keepFocus(asked.closest(".ask-row").querySelector("textarea"));
    }
    for (const menu of document.querySelectorAll("details.menu[open]"))
      if (!menu.contains(event.target)) menu.removeAttribute("open");
  });

  document.addEventListener("change", (event) => {
    const box = event.target;
    if (box.matches?.("input.tick"))
      send("document", { kind: "choose", id: box.dataset.id, chosen: box.checked });
    if (box.id === "file-input") {
      upload([...box.files]);
      box.value = "";
    }
  });

  // ------------------------------------------------------------------ keyboard

  // Ask and Stop take each other's place, and who pressed one would be nowhere. Not where a touch
  // would bring the keyboard up.
  const keepFocus = (box) => window.matchMedia("(pointer: fine)").matches && box.focus();

  const typing = (element) => element.matches?.("input, textarea, select, [contenteditable]");

  document.addEventListener(
    "keydown",
    (event) => {
      if (event.key === "Enter" && event.shiftKey && event.target.matches?.("#question textarea")) {
        event.stopImmediatePropagation(); // a new line, not a question
      } else if (event.key === "Enter" && event.target.matches?.("#question textarea")) {
        page.toEnd?.(); // what one has just asked is to be seen
      } else if (event.key === "Escape" && !$("dialog[open]")) {
        document.querySelectorAll("details.menu[open]").forEach((menu) => menu.removeAttribute("open"));
        for (const id of ["#stop", "#every-stop", "#compare-stop", "#watch-stop"]) {
          const button = $(`button${id}, ${id} button`);
          if (button && button.offsetParent !== null) button.click();
        }
      } else if (event.key === "/" && !typing(event.target) && !event.ctrlKey && !event.metaKey) {
        event.preventDefault();
        show("chat");
        question()?.focus();
      }
    },
    true,
  );

  // ------------------------------------------------------------------ uploads

  const sending = (name) => {
    const note = make("p", { className: "facts", textContent: "Sending" });
    const row = make("li", { className: "report parsing" }, make("span", { className: "spinner" }),
      make("div", { className: "what" }, make("p", { className: "name", textContent: name }), note));
    $("#sending").append(row);
    return { note, row };
  };

  const sent = new Map(); // files by token, as one may have to be sent again with a password

  const closer = (row) => {
    const close = make("button", { type: "button", className: "act small", textContent: "✕", ariaLabel: "Dismiss" });
    close.addEventListener("click", () => row.remove());
    return close;
  };

  // A row with a field; the password goes with the file and is kept nowhere.
  const unlock = (file, message) => {
    const { note, row } = sending(file.name);
    const field = make("input", { type: "password", autocomplete: "off", required: true, placeholder: "Password", ariaLabel: `Password of ${file.name}` });
    const form = make("form", { className: "unlock" }, field, make("button", { className: "act soft", textContent: "Open" }));
    row.className = "report locked";
    row.querySelector(".spinner").remove();
    note.textContent = `${message} The password is not kept on the server; the text is.`;
    note.setAttribute("role", "status");
    row.querySelector(".what").append(form);
    row.append(closer(row));
    form.addEventListener("submit", (event) => {
      event.preventDefault();
      row.remove();
      upload([file], field.value);
    });
    if (!document.activeElement || document.activeElement === document.body) field.focus();
  };

  const findLocked = () => {
    for (const row of document.querySelectorAll("#reports .locked")) {
      const file = sent.get(row.dataset.token);
      sent.delete(row.dataset.token);
      if (file) unlock(file, row.textContent);
    }
  };

  const upload = async (files, password = "") => {
    const tokens = [];
    for (const file of files) {
      const { note, row } = sending(file.name);
      try {
        const reply = await fetch(`files?name=${encodeURIComponent(file.name)}`, {
          method: "POST",
          headers: { "x-pacellm-upload": "1" },
          body: file,
        });
        const answer = await reply.json();
        if (!reply.ok) throw new Error(answer.error);
        tokens.push(answer.token);
        sent.set(answer.token, file);
        row.remove();
      } catch (error) {
        row.className = "report refused";
        note.textContent = error.message || "It could not be sent.";
        row.append(closer(row));
      }
    }
    if (tokens.length) send("upload", password ? { tokens, password } : { tokens });
  };

  let depth = 0;
  const dragging = (on) => document.body.classList.toggle("dropping", on);
  const hasFiles = (event) => [...(event.dataTransfer?.types || [])].includes("Files");
  document.addEventListener("dragenter", (event) => hasFiles(event) && ((depth += 1), dragging(true)));
  document.addEventListener("dragleave", (event) => hasFiles(event) && (depth -= 1) <= 0 && dragging(false));
  document.addEventListener("dragover", (event) => hasFiles(event) && event.preventDefault());
  document.addEventListener("drop", (event) => {
    if (!hasFiles(event)) return;
    event.preventDefault();
    depth = 0;
    dragging(false);
    upload([...event.dataTransfer.files]);
  });

  // ------------------------------------------------------------------ the rest

  page.save = (name, text) => {
    if (!text) return;
    const url = URL.createObjectURL(new Blob([text], { type: "text/plain;charset=utf-8" }));
    make("a", { href: url, download: name }).click();
    setTimeout(() => URL.revokeObjectURL(url), 10_000);
  };

  // Keeps the end of the conversation in view, unless somebody has scrolled up.
  const follow = () => {
    const talk = $("#talk");
    if (!talk) return void setTimeout(follow, 100);
    let pinned = true;
    page.toEnd = () => ((pinned = true), (talk.scrollTop = talk.scrollHeight));
    talk.addEventListener("scroll", () => {
      pinned = talk.scrollHeight - talk.scrollTop - talk.clientHeight < 80;
    });
    new MutationObserver(() => pinned && (talk.scrollTop = talk.scrollHeight)).observe(talk, {
      childList: true,
      subtree: true,
      characterData: true,
    });
    for (const id of ["#middle", "#reports"])
      new MutationObserver(id === "#middle" ? markCurrent : findLocked).observe($(id), {
        childList: true,
        subtree: true,
      });
    const theme = localStorage.getItem("pacellm-theme");
    if (theme) document.body.classList.toggle("dark", theme === "dark");
    show(document.body.dataset.pane || "chat");
  };
  document.addEventListener("DOMContentLoaded", follow);
  if (document.readyState !== "loading") follow();
})();
