// Shows one page of a document beside the conversation: an image with the cited passage marked,
// or the page's text where the document has no pages to picture.
(() => {
  "use strict";
  const page = (window.pacellm = window.pacellm || {});
  const $ = (selector) => document.querySelector(selector);
  const known = new Map();
  let now = { id: "", number: 1, quote: "", zoom: 1 };
  let request = 0;
  let url = "";
  const passwords = new Map(); // by document, as long as the page is open

  const describe = async (id) => {
    if (!known.has(id)) {
      const reply = await fetch(`document/${encodeURIComponent(id)}`);
      const answer = await reply.json();
      if (!reply.ok) throw new Error(answer.error);
      known.set(id, answer);
    }
    return known.get(id);
  };

  const note = (text, kind = "quiet") => {
    const element = $("#viewer-note");
    element.textContent = text;
    element.className = `notice ${kind}`;
    element.hidden = !text;
  };

  const drawBar = (about) => {
    $("#viewer .bar-top").hidden = false;
    $("#viewer-name").textContent = about.name;
    $("#viewer-name").title = about.name;
    $("#viewer-number").value = now.number;
    $("#viewer-number").max = about.pages;
    const label = about.labels[now.number - 1];
    $("#viewer-of").textContent =
      `of ${about.pages}` + (label && label !== String(now.number) ? ` (printed: ${label})` : "");
    $("#viewer-previous").disabled = now.number <= 1;
    $("#viewer-next").disabled = now.number >= about.pages;
    $("#viewer-original").href = `original/${encodeURIComponent(now.id)}`;
    for (const button of document.querySelectorAll("#viewer .zoom")) button.hidden = !about.images;
  };

  const askPassword = (about, wrong) => {
    note(`${wrong ? "This password does not open the file. " : ""}Its pages are behind a password; this is their text. `);
    const button = document.createElement("button");
    Object.assign(button, { type: "button", className: "act soft", textContent: "Show the page" });
    button.addEventListener("click", async () => {
      const { id } = now;
      const field = { label: "Kept in this window only, until it is closed.", type: "password" };
      const answer = await page.ask(`Password of ${about.name}`, { password: field }, "Show the page");
      if (!answer || !answer.password) return;
      passwords.set(id, answer.password);
      if (now.id === id) draw();
    });
    $("#viewer-note").append(button);
  };

  const drawPage = async (about, mine) => {
    const sheet = $("#viewer-sheet");
    const base = `page/${encodeURIComponent(now.id)}/${now.number}`;
    const quote = `quote=${encodeURIComponent(now.quote.slice(0, 4000))}`;
    const wide = sheet.clientWidth * now.zoom * Math.min(window.devicePixelRatio || 1, 2);
    const width = Math.min(Math.max(Math.ceil(wide / 200) * 200, 600), 2000);
    const password = passwords.get(now.id);
    const headers = password ? { "x-pacellm-password": encodeURIComponent(password) } : {};
    let images = about.images;
    let locked = false;
    let reply = await fetch(images ? `${base}.webp?${quote}&width=${width}` : `${base}.html?${quote}`, { headers });
    if (!reply.ok) {
      const answer = await reply.json();
      if (!answer.locked) throw new Error(answer.error);
      locked = true;
      images = false; // the text was kept, the password was not
      reply = await fetch(`${base}.html?${quote}`);
      if (!reply.ok) throw new Error((await reply.json()).error);
    }
    const content = images ? await reply.blob() : await reply.text();
    if (mine !== request) return; // another page was asked for meanwhile
    if (images) {
      const image = document.createElement("img");
      image.alt = `Page ${now.number} of ${about.name}`;
      image.style.width = `${100 * now.zoom}%`;
      URL.revokeObjectURL(url);
      url = image.src = URL.createObjectURL(content);
      sheet.replaceChildren(image);
      const missing = now.quote && reply.headers.get("x-marked") !== "1";
      note(missing ? "The passage could not be found on this page's image." : "");
    } else {
      sheet.innerHTML = content; // escaped by the server
      sheet.querySelector("mark")?.scrollIntoView({ block: "center" });
      note("");
      if (locked) askPassword(about, passwords.delete(now.id));
    }
    sheet.dataset.shown = `${now.id}/${now.number}`;
  };

  const draw = async () => {
    const mine = (request += 1);
    $("#viewer").classList.add("busy");
    try {
      const about = await describe(now.id);
      now.number = Math.min(Math.max(now.number || 1, 1), about.pages || 1);
      if (mine !== request) return;
      drawBar(about);
      await drawPage(about, mine);
    } catch (error) {
      if (mine === request) {
        $("#viewer-sheet").replaceChildren();
        note(error.message || "The page can not be shown.", "error");
      }
    } finally {
      if (mine === request) $("#viewer").classList.remove("busy");
    }
  };

  const turn = (by) => {
    now = { ...now, number: now.number + by, quote: "" };
    draw();
  };

  page.viewer = {
    open(id, number, quote) {
      now = { ...now, id, number, quote };
      document.body.classList.add("viewing");
      page.show("page");
      draw();
    },
  };

  document.addEventListener("click", (event) => {
    const button = event.target.closest("#viewer button");
    if (!button) return;
    const does = {
      "viewer-previous": () => turn(-1),
      "viewer-next": () => turn(1),
      "viewer-out": () => ((now.zoom = Math.max(now.zoom / 1.25, 0.5)), draw()),
      "viewer-in": () => ((now.zoom = Math.min(now.zoom * 1.25, 3)), draw()),
      "viewer-close": () => {
        page.unmark();
        document.body.classList.remove("viewing");
        page.show("chat");
      },
    };
    does[button.id]?.();
  });
  document.addEventListener("change", (event) => {
    if (event.target.id !== "viewer-number") return;
    now = { ...now, number: Number(event.target.value), quote: "" };
    draw();
  });
})();
